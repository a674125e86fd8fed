// Shows that PlanFile accepts the valid plans, names what is wrong with a damaged container, and
// survives every truncation and single-byte change.
#include "PlanCallExamples.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <gtest/gtest.h>

using namespace moira::rt;
using namespace moira::rt::test;

namespace {

/// Id of the first problem and the text of all; None for an accepted plan.
std::pair<int, std::string> load(const std::vector<uint8_t> &bytes) {
  Expected<PlanFile> file = PlanFile::fromBytes(bytes);
  if (file)
    return {0, ""};
  return {static_cast<int>(file.status().diagnostics().front().id), file.status().str()};
}

TEST(Crc32c, KnownValues) {
  const std::string check = "123456789";
  std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t *>(check.data()), check.size());
  EXPECT_EQ(crc32c(bytes), 0xE3069283u);
  EXPECT_EQ(crc32c({}), 0u);
  std::vector<uint8_t> zeros(32);
  EXPECT_EQ(crc32c(zeros), 0x8A9136AAu); // RFC 3720, B.4
  EXPECT_EQ(crc32c(bytes.subspan(4), crc32c(bytes.first(4))), 0xE3069283u);
}

/// Long runs are added up in parts; short ones, of which they can be put together, are not.
TEST(Crc32c, LongRunsAreTheSumsOfShortOnes) {
  std::vector<uint8_t> many(100'003);
  uint32_t next = 1;
  for (uint8_t &byte : many)
    byte = static_cast<uint8_t>((next = next * 1664525 + 1013904223) >> 24);
  for (size_t first : {0, 1, 7, 12'345})
    for (size_t count : {12'287, 12'288, 12'289, 24'576, 36'871, 87'658}) {
      std::span<const uint8_t> bytes = std::span<const uint8_t>(many).subspan(first, count);
      uint32_t sum = 0x12345678, whole = crc32c(bytes, sum);
      for (size_t done = 0; done < count; done += 1000)
        sum = crc32c(bytes.subspan(done, std::min<size_t>(1000, count - done)), sum);
      EXPECT_EQ(whole, sum) << first << " " << count;
    }
}

TEST(PlanFile, NamesAreTextWithoutControlCharacters) {
  const std::string longest(512, 'x');
  for (std::string_view good :
       {"a", " ~", "\u00e9", "\u20ac", "\ud7ff\ue000", "\U00010000", "\U0010ffff", longest.c_str()})
    EXPECT_TRUE(isName(good)) << good;
  const std::string tooLong = longest + "x";
  for (std::string_view bad :
       {"", "a\n", "\x7f", "\x80", "\xbf", "\xc3", "\xc3(", "\xc1\xbf", "\xe2\x82", "\xe0\x9f\xbf",
        "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf8\x90\x80\x80",
        "\xf9\x80\x80\x80", "\xfc\x90\x80\x80", "\xff\x90\x80\x80", "a\xff", tooLong.c_str()})
    EXPECT_FALSE(isName(bad)) << testing::PrintToString(bad);
  EXPECT_FALSE(isName(std::string_view("a\0", 2)));
}

TEST(PlanFile, AcceptsValidPlans) {
  EXPECT_EQ(load(expertPlan().build()).second, "");
  EXPECT_EQ(load(tinyPlan().build()).second, "");
  EXPECT_EQ(load(callsPlan().build()).second, "");
  EXPECT_EQ(load(cachePlan().build()).second, "");
  PlanSpec noBound = expertPlan();
  noBound.programs.erase(noBound.programs.begin());
  noBound.kernels.clear();
  noBound.sections.clear();
  EXPECT_EQ(load(noBound.build()).second, "");
}

/// FlatBuffers places an empty vector anywhere, so whether it happens to be aligned may not matter.
TEST(PlanFile, AcceptsEmptyShapesWhereverTheyLie) {
  for (size_t length = 0; length < 16; ++length) {
    PlanSpec plan = expertPlan();
    // One number a row; the name moves what is written before it.
    plan.kernels.push_back(
        {std::string(length + 1, 'n'),
         0,
         {{moira::fb::DType::f32, {16}, true, false}, {moira::fb::DType::f32, {}, true, true}}});
    EXPECT_EQ(load(plan.build()).second, "") << length;
  }
}

TEST(PlanFile, ReadsBackWhatWasWritten) {
  std::vector<uint8_t> bytes = expertPlan().build();
  std::string path = ::testing::TempDir() + "/PlanFileTest.moeplan";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char *>(bytes.data()), bytes.size());
  Expected<PlanFile> file = PlanFile::open(path);
  ASSERT_TRUE(file) << file.status().str();
  EXPECT_EQ(file->fileSize(), bytes.size());
  ASSERT_EQ(file->section(0).size(), 100u);
  EXPECT_EQ(file->section(0)[99], 0x5a);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->section(0).data()) % 64, 0u);
  ASSERT_NE(file->program("reference"), nullptr);
  EXPECT_TRUE(file->program("reference")->reference());
  EXPECT_EQ(file->program("backward"), nullptr);
  EXPECT_TRUE(viewsInsideArenas(*file));
  std::remove(path.c_str());
}

TEST(PlanFile, NamesWhatCannotBeOpened) {
  Expected<PlanFile> none = PlanFile::open("/nonexistent/a.moeplan");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.status().diagnostics()[0].id, ErrorId::FileNotFound);
  EXPECT_NE(none.status().str().find("/nonexistent/a.moeplan"), std::string::npos);
  Expected<PlanFile> directory = PlanFile::open(::testing::TempDir());
  ASSERT_FALSE(directory);
  EXPECT_EQ(directory.status().diagnostics()[0].id, ErrorId::NotAPlan);
}

TEST(PlanFile, RefusesBadContainers) {
  struct Case {
    const char *name;
    void (*change)(std::vector<uint8_t> &);
    ErrorId id;
    const char *text;
  } cases[] = {
      {"empty", [](auto &b) { b.clear(); }, ErrorId::NotAPlan, "MOIRAPLN"},
      {"other magic", [](auto &b) { b[0] = 'X'; }, ErrorId::NotAPlan, "MOIRAPLN"},
      {"ELF", [](auto &b) { std::memcpy(b.data(), "\177ELF", 4); }, ErrorId::NotAPlan, "MOIRAPLN"},
      {"version", [](auto &b) { b[8] = 2; }, ErrorId::PlanVersion, "format version 2"},
      {"schema hash", [](auto &b) { b[16] ^= 1; }, ErrorId::PlanVersion, "schema hash"},
      {"header only", [](auto &b) { b.resize(20); }, ErrorId::PlanTruncated, "20 bytes"},
      {"last byte lost", [](auto &b) { b.pop_back(); }, ErrorId::PlanTruncated, "of"},
      {"bytes behind", [](auto &b) { b.resize(b.size() + 3); }, ErrorId::PlanStructure, "3 bytes"},
      {"bit flip", [](auto &b) { b[200] ^= 4; }, ErrorId::PlanChecksum, "checksum"},
      {"FlatBuffer length",
       [](auto &b) {
         b[38] = 1;
         reseal(b);
       },
       ErrorId::PlanStructure, "length"},
      {"root offset",
       [](auto &b) {
         b[43] = 0x7f;
         reseal(b);
       },
       ErrorId::PlanStructure, "FlatBuffer"},
  };
  for (const Case &c : cases) {
    std::vector<uint8_t> bytes = expertPlan().build();
    c.change(bytes);
    auto [id, text] = load(bytes);
    EXPECT_EQ(id, static_cast<int>(c.id)) << c.name << "\n" << text;
    EXPECT_NE(text.find(c.text), std::string::npos) << c.name << "\n" << text;
  }
}

/// Loads `bytes`, which may be refused; if not, its views must be where they may be.
void loadAny(const std::vector<uint8_t> &bytes, size_t &accepted) {
  Expected<PlanFile> file = PlanFile::fromBytes(bytes);
  if (!file) {
    ASSERT_FALSE(file.status().ok());
    return;
  }
  ++accepted;
  ASSERT_TRUE(viewsInsideArenas(*file));
}

TEST(PlanFile, SurvivesEveryTruncation) {
  for (const PlanSpec &plan : {tinyPlan(), expertPlan(), callsPlan(), cachePlan()}) {
    std::vector<uint8_t> bytes = plan.build();
    for (size_t size = 0; size < bytes.size(); ++size) {
      std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + size);
      EXPECT_NE(load(cut).first, 0) << size;
      reseal(cut);
      EXPECT_NE(load(cut).first, 0) << size << " resealed";
    }
  }
}

TEST(PlanFile, SurvivesEveryByteChange) {
  size_t changes = 0, acceptedAsIs = 0, acceptedResealed = 0;
  auto change = [&](std::vector<uint8_t> &bytes, size_t at, uint8_t mask) {
    ++changes;
    bytes[at] ^= mask;
    loadAny(bytes, acceptedAsIs);
    std::vector<uint8_t> sealed = bytes;
    reseal(sealed);
    if (at >= sizeof(PlanHeader))
      loadAny(sealed, acceptedResealed);
    bytes[at] ^= mask;
  };
  // All 255 changes of each byte of the tiny plan; the eight bit flips and the complement of each
  // byte of four others.
  std::vector<uint8_t> tiny = tinyPlan().build();
  for (size_t at = 0; at < tiny.size(); ++at)
    for (int mask = 1; mask < 256; ++mask)
      change(tiny, at, static_cast<uint8_t>(mask));
  PlanSpec forward = expertPlan(), reference = expertPlan();
  forward.programs.pop_back();
  reference.programs.erase(reference.programs.begin());
  for (const PlanSpec &plan : {expertPlan(), callsPlan(), forward, reference}) {
    std::vector<uint8_t> bytes = plan.build();
    for (size_t at = 0; at < bytes.size(); ++at)
      for (int mask : {1, 2, 4, 8, 16, 32, 64, 128, 255})
        change(bytes, at, static_cast<uint8_t>(mask));
  }
  std::printf("%zu changes; accepted: %zu as they were, %zu with the checksum made right\n",
              changes, acceptedAsIs, acceptedResealed);
  EXPECT_EQ(acceptedAsIs, 0u); // the checksum finds every single-byte change
  EXPECT_GT(acceptedResealed, 0u);
}

TEST(PlanFile, VerifiesLargePlansInLinearTime) {
  // 100,000 instructions over the same few views.
  PlanSpec plan = expertPlan();
  ProgramSpec &p = plan.forward();
  std::vector<InstrSpec> body(p.instrs.begin() + at::embedding, p.instrs.begin() + at::linear + 1);
  while (p.instrs.size() < 100000)
    p.instrs.insert(p.instrs.end(), body.begin(), body.end());
  std::vector<uint8_t> bytes = plan.build();
  auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(load(bytes).second, "");
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%zu instructions, %zu bytes: %.3f s\n", p.instrs.size(), bytes.size(), seconds);
  EXPECT_LT(seconds, 10);
}

} // namespace
