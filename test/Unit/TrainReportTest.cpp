//===- TrainReportTest.cpp --------------------------------------*- C++ -*-===//
// Shows that learning rates follow their formulas, that metrics survive a run that is resumed, and
// that an event file is, byte by byte, what TensorBoard's formats say.
//===----------------------------------------------------------------------===//
#include "RuntimeFiles.h"

#include "moira/rt/Metrics.h"
#include "moira/rt/Schedule.h"

#include <bit>
#include <cmath>
#include <gmock/gmock.h>
#include <sstream>

using namespace moira::rt;
using namespace moira::test;
using testing::HasSubstr;

namespace {

std::string contents(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

TEST(Schedule, FollowsItsShape) {
  struct {
    const char *text;
    std::vector<std::pair<uint64_t, double>> points; // at a peak of 2
  } const cases[] = {
      {"constant", {{1, 2}, {1000, 2}}},
      {"constant,warmup=10", {{1, 0.2}, {5, 1}, {10, 2}, {11, 2}}},
      {"linear,warmup=10,steps=110,least=1", {{5, 1}, {10, 2}, {60, 1.5}, {110, 1}, {500, 1}}},
      {"cosine,steps=100", {{0, 2}, {25, 1 + std::sqrt(0.5)}, {50, 1}, {100, 0}, {101, 0}}},
      {"cosine,warmup=10,steps=30,least=0.5", {{20, 1.25}, {30, 0.5}}},
      {"inverse-sqrt,warmup=100", {{50, 1}, {100, 2}, {400, 1}, {10000, 0.2}}},
      {"inverse-sqrt", {{1, 2}, {4, 1}}},
  };
  for (const auto &c : cases) {
    Expected<Schedule> schedule = Schedule::parse(c.text, 2);
    ASSERT_TRUE(schedule) << schedule.status().str();
    for (auto [step, rate] : c.points)
      EXPECT_NEAR(schedule->at(step), rate, 1e-12) << c.text << " at " << step;
  }
}

TEST(Schedule, SaysWhatIsWrong) {
  for (auto [text, says] : {std::pair("square", "'square' is none of constant"),
                            {"cosine", "it needs steps=STEPS"},
                            {"linear,steps=5,warmup=5", "it needs steps=STEPS"},
                            {"constant,warmup=x", "'warmup=x' is none of"},
                            {"constant,warmup", "'warmup' is none of"},
                            {"cosine,steps=10,least=-1", "'least=-1' is none of"},
                            {"constant,slope=1", "'slope=1' is none of"}}) {
    Expected<Schedule> schedule = Schedule::parse(text, 1);
    ASSERT_FALSE(schedule) << text;
    EXPECT_THAT(schedule.status().str(), HasSubstr(says));
    EXPECT_EQ(schedule.status().exitCode(), 1);
  }
}

TEST(Metrics, ResumedRunsTakeUpTheirLines) {
  TempDir directory;
  std::string path = directory / "metrics.jsonl";
  auto write = [&](uint64_t resumed, uint64_t last) {
    Expected<JsonLines> lines = JsonLines::open(path, resumed);
    ASSERT_TRUE(lines) << lines.status().str();
    for (uint64_t step = resumed + 1; step <= last; ++step)
      ASSERT_TRUE(lines->write({step, {{"loss", 10.0 / double(step)}, {"x", NAN}}}));
  };
  write(0, 5);
  std::string five = contents(path);
  EXPECT_EQ(five.substr(0, five.find('\n')), "{\"step\":1,\"loss\":10,\"x\":null}");
  write(3, 5); // steps 4 and 5 are taken again
  EXPECT_EQ(contents(path), five);
  writeFile(path, five + "{\"step\":6,\"lo"); // the run ended in the middle of a line
  write(5, 6);
  EXPECT_EQ(contents(path).size(),
            five.size() + std::string("{\"step\":6,\"loss\":1.66666667,\"x\":null}\n").size());
  write(0, 2); // from the beginning
  EXPECT_EQ(contents(path), five.substr(0, contents(path).size()));
  EXPECT_FALSE(JsonLines::open(directory / "no/such.jsonl", 0));
}

TEST(Metrics, NumbersHaveTheDigitsThatTellThemApart) {
  for (auto [value, text] : {std::pair(double(1e-4f), "0.0001"),
                             {double(0.1f), "0.1"},
                             {double(1e-5f), "1e-05"},
                             {double(5.54517746f), "5.5451775"},
                             {double(16777216.f), "1.6777216e+07"},
                             {double(-3e38f), "-3e+38"},
                             {0.0, "0"},
                             {1e-4, "0.0001"}, // no f32, nor are the next ones
                             {1.0 / 3, "0.333333333"},
                             {1e39, "1e+39"},
                             {double(INFINITY), "null"}})
    EXPECT_EQ(metricsLine({7, {{"x", value}}}), format("{\"step\":7,\"x\":%s}", text));
  for (uint32_t bits = 1; bits < 0x7f800000; bits += 0x12345) {
    auto value = std::bit_cast<float>(bits);
    std::string line = metricsLine({0, {{"x", value}}});
    EXPECT_EQ(std::strtof(line.c_str() + line.find("\"x\":") + 4, nullptr), value) << line;
  }
}

/// CRC-32C bit by bit, masked as records have it.
uint32_t masked(const std::string &bytes) {
  uint32_t crc = ~0u;
  for (char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0u);
  }
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <typename T> T take(const std::string &bytes, size_t &at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  at += sizeof value;
  return value;
}

TEST(Metrics, EventFilesAreWhatTensorBoardReads) {
  TempDir directory;
  std::string board = directory / "board";
  {
    Expected<TensorBoard> events = TensorBoard::open(board);
    ASSERT_TRUE(events) << events.status().str();
    ASSERT_TRUE(events->write({300, {{"loss", 2.5}}}));
  }
  std::string name = std::filesystem::directory_iterator(board)->path().filename().string();
  EXPECT_TRUE(name.starts_with("events.out.tfevents."));
  std::string bytes = contents(board + "/" + name);
  std::vector<std::string> events;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = take<uint64_t>(bytes, at);
    EXPECT_EQ(take<uint32_t>(bytes, at), masked(bytes.substr(at - 12, 8)));
    events.push_back(bytes.substr(at, length));
    at += length;
    EXPECT_EQ(take<uint32_t>(bytes, at), masked(events.back()));
  }
  ASSERT_EQ(events.size(), 2u);
  // Event: wall_time = 1 (double), step = 2 (varint), file_version = 3, summary = 5.
  EXPECT_EQ(events[0][0], 0x09);
  EXPECT_EQ(events[0].substr(9), std::string("\x1a\x0d", 2) + "brain.Event:2");
  EXPECT_EQ(events[1][0], 0x09);
  // Summary: value = 1; its tag = 1, its simple_value = 2 (float).
  std::string value = std::string("\x0a\x04loss\x15", 7) + std::string("\x00\x00\x20\x40", 4);
  EXPECT_EQ(events[1].substr(9), std::string("\x10\xac\x02\x2a\x0d\x0a\x0b", 7) + value);
}

} // namespace
