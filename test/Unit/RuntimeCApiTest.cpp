//===- RuntimeCApiTest.cpp --------------------------------------*- C++ -*-===//
// Shows that the C interface of libmoira_rt.so runs a plan from memory as often as wanted, with the
// values of a run from files, and turns misuse into codes and messages.
//===----------------------------------------------------------------------===//
#include "RuntimePlans.h"
#include "moira_rt.h"

#include <gmock/gmock.h>

using namespace moira::test;
using testing::HasSubstr;

namespace {

TEST(RuntimeCApi, SessionsRunOnThreadsFromMemory) {
  TempDir dir;
  writeExpertsFiles(dir, 3);
  savePlan(dir / "p.moeplan", expertsPlan(2, 1, 24));
  std::vector<float> x(kTokens * kHidden);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(i % 7) - 3;
  const int64_t shape[] = {kTokens, kHidden};
  moira_tensor input = {"x", MOIRA_F32, 2, shape, x.data()};

  std::vector<std::vector<float>> results;
  for (moira_program program : {MOIRA_MESH, MOIRA_REFERENCE_F32, MOIRA_REFERENCE_F64}) {
    moira_session *session =
        moira_open((dir / "p.moeplan").c_str(), (dir / "model").c_str(), program);
    ASSERT_TRUE(session) << moira_last_error();
    for (int repeat = 0; repeat < 2; ++repeat) {
      ASSERT_EQ(moira_forward(session, &input, 1), 0) << moira_last_error();
      ASSERT_EQ(moira_output_count(session), 1u);
      moira_tensor out;
      ASSERT_EQ(moira_output(session, 0, &out), 0);
      EXPECT_STREQ(out.name, "y");
      ASSERT_EQ(out.rank, 2);
      EXPECT_EQ(out.shape[0], kTokens);
      const float *values = static_cast<const float *>(out.data);
      results.emplace_back(values, values + kTokens * kHidden);
    }
    EXPECT_EQ(moira_output(session, 1, &input), 2);
    input = {"x", MOIRA_F32, 2, shape, x.data()};
    moira_close(session);
  }
  EXPECT_EQ(results[0], results[1]);
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_NEAR(results[0][i], results[2][i], 1e-4);
    EXPECT_NEAR(results[0][i], results[4][i], 1e-4);
  }
}

TEST(RuntimeCApi, StatesAreListedAndWrittenAndStepsTimed) {
  TempDir dir;
  writeExpertsFiles(dir, 3);
  savePlan(dir / "p.moeplan", expertsPlan(1, 24, 24));
  std::vector<float> x(kTokens * kHidden, 1);
  const int64_t shape[] = {kTokens, kHidden};
  moira_tensor input = {"x", MOIRA_F32, 2, shape, x.data()}, out;
  // Without weights everything is zero, and what is written counts from the next step on.
  moira_session *session = moira_open((dir / "p.moeplan").c_str(), nullptr, MOIRA_REFERENCE_F32);
  ASSERT_TRUE(session) << moira_last_error();
  size_t count = moira_state_count(session);
  ASSERT_GT(count, 0u);
  for (float value : {0.0f, 0.5f}) {
    for (size_t i = 0; i < count && value != 0; ++i) {
      moira_tensor state;
      ASSERT_EQ(moira_state(session, i, &state), 0) << moira_last_error();
      EXPECT_EQ(state.dtype, MOIRA_F32);
      size_t elements = 1;
      for (int d = 0; d < state.rank; ++d)
        elements *= static_cast<size_t>(state.shape[d]);
      std::vector<float> values(elements, value);
      EXPECT_EQ(moira_write_state(session, i, values.data()), 0) << moira_last_error();
    }
    ASSERT_EQ(moira_forward(session, &input, 1), 0) << moira_last_error();
    ASSERT_EQ(moira_output(session, 0, &out), 0);
    EXPECT_EQ(static_cast<const float *>(out.data)[0] != 0, value != 0);
  }
  double milliseconds[3] = {-1, -1, -1};
  EXPECT_EQ(moira_steps(session, &input, 1, 3, milliseconds), 0) << moira_last_error();
  for (double each : milliseconds)
    EXPECT_GT(each, 0);
  moira_tensor state;
  EXPECT_EQ(moira_state(session, count, &state), 2);
  EXPECT_EQ(moira_write_state(session, count, x.data()), 2);
  EXPECT_THAT(moira_last_error(), HasSubstr("MOE-0502"));
  EXPECT_EQ(moira_write_state(session, 0, nullptr), 1);
  EXPECT_EQ(moira_steps(session, &input, 1, 1, nullptr), 1);
  moira_close(session);
  session = moira_open((dir / "p.moeplan").c_str(), nullptr, MOIRA_MESH);
  ASSERT_TRUE(session) << moira_last_error();
  EXPECT_EQ(moira_write_state(session, 0, x.data()), 2); // has two ranks
  EXPECT_THAT(moira_last_error(), HasSubstr("MOE-0508"));
  moira_close(session);
}

TEST(RuntimeCApi, MisuseGivesCodesAndMessages) {
  TempDir dir;
  writeExpertsFiles(dir, 3);
  savePlan(dir / "p.moeplan", expertsPlan(1, 24, 24));
  EXPECT_EQ(moira_open(nullptr, "", MOIRA_MESH), nullptr);
  EXPECT_EQ(moira_open((dir / "absent").c_str(), "", MOIRA_MESH), nullptr);
  EXPECT_THAT(moira_last_error(), HasSubstr("MOE-0106"));
  auto unknown = static_cast<moira_program>(3);
  EXPECT_EQ(moira_open((dir / "p.moeplan").c_str(), (dir / "model").c_str(), unknown), nullptr);
  EXPECT_THAT(moira_last_error(), HasSubstr("3 is no moira_program"));
  EXPECT_EQ(moira_run_files("", "", "", "", unknown), 1);
  moira_session *session =
      moira_open((dir / "p.moeplan").c_str(), (dir / "model").c_str(), MOIRA_MESH);
  ASSERT_TRUE(session) << moira_last_error();
  EXPECT_EQ(moira_forward(session, nullptr, 0), 2);
  EXPECT_THAT(moira_last_error(), HasSubstr("x [12, 4] is missing"));
  const int64_t shape[] = {kTokens, kHidden};
  std::vector<float> x(kTokens * kHidden);
  moira_tensor bad[] = {{"x", MOIRA_I32, 2, shape, x.data()}, {"z", MOIRA_F32, 2, shape, x.data()}};
  EXPECT_EQ(moira_forward(session, bad, 2), 2);
  EXPECT_EQ(moira_output_count(session), 0u);
  int32_t ids[1] = {};
  EXPECT_EQ(moira_generate(session, ids, 1, 1, 1, nullptr, nullptr), 1);
  EXPECT_EQ(moira_generate(nullptr, ids, 1, 1, 1, ids, nullptr), 1);
  EXPECT_EQ(moira_generate(session, ids, 1, 1, 1, ids, nullptr), 2);
  EXPECT_THAT(moira_last_error(), HasSubstr("MOE-0508"));
  bad[0].dtype = MOIRA_F32;
  moira_tensor twice[] = {bad[0], bad[0]};
  EXPECT_EQ(moira_forward(session, twice, 2), 2);
  EXPECT_THAT(moira_last_error(), HasSubstr("x is given twice"));
  bad[0].rank = -1;
  EXPECT_EQ(moira_forward(session, bad, 1), 1);
  EXPECT_THAT(moira_last_error(), HasSubstr("x has -1 dimensions"));
  bad[0].rank = 2;
  EXPECT_EQ(moira_forward(session, bad, 1), 0) << moira_last_error();
  moira_close(session);
  moira_close(nullptr);
  EXPECT_EQ(moira_run_files((dir / "p.moeplan").c_str(), (dir / "model").c_str(),
                            (dir / "in.safetensors").c_str(), (dir / "o.safetensors").c_str(),
                            MOIRA_REFERENCE_F32),
            0)
      << moira_last_error();
  EXPECT_TRUE(std::filesystem::exists(dir / "o.safetensors"));
}

} // namespace
