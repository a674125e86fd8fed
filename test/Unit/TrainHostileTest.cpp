//===- TrainHostileTest.cpp -------------------------------------*- C++ -*-===//
// Shows that damaged and hostile training checkpoints are refused before anything of them is used:
// every flipped bit is found and its tensor named, and no manifest makes a reader leave the
// directory, follow a link, or read a wrong place.
//===----------------------------------------------------------------------===//
#include "MemoryDisk.h"
#include "RuntimeFiles.h"
#include "TrainState.h"

#include "moira/rt/PlanFile.h"

#include <gmock/gmock.h>
#include <random>

namespace fb = moira::fb;
using namespace moira::rt;
using namespace moira::test;
using testing::HasSubstr;

namespace {

std::vector<TestState> model() {
  return {{"embed", fb::DType::f32, {30, 6}, {0, -1}},
          {"experts", fb::DType::f32, {4, 6, 10}, {1, -1, -1}, true},
          {"norm", fb::DType::bf16, {7}, {-1}}};
}

/// What opening, verifying and loading say.
Status everything(const std::string &path, FileSystem &files) {
  Expected<TrainingCheckpoint> checkpoint = TrainingCheckpoint::open(path, files);
  if (!checkpoint)
    return checkpoint.takeStatus();
  return checkpoint->verify();
}

TEST(TrainHostile, EveryFlippedBitIsFound) {
  std::vector<TestState> states = model();
  MemoryDisk disk;
  ASSERT_TRUE(saveOn(states, {1, 2, 1}, 1, "/run", disk));
  ASSERT_TRUE(saveOn(states, {1, 2, 1}, 3, "/run", disk));
  Expected<TrainingCheckpoint> good = TrainingCheckpoint::open("/run", disk);
  ASSERT_TRUE(good);
  std::mt19937 random(5);
  std::vector<std::string> files = {"/run/LATEST", "/run/step-3/manifest.json",
                                    "/run/step-3/rank-00000.safetensors",
                                    "/run/step-3/rank-00001.safetensors"};
  int named = 0, inBoxes = 0;
  for (int i = 0; i < 10000; ++i) {
    const std::string &file = files[random() % files.size()];
    MemoryDisk::Bytes &bytes = disk.contents(file);
    size_t at = random() % bytes.size();
    uint8_t bit = uint8_t(1u << random() % 8);
    bytes[at] ^= bit;
    Status status = everything("/run", disk);
    ASSERT_FALSE(status) << file << " byte " << at;
    EXPECT_EQ(status.diagnostics()[0].id, ErrorId::BadCheckpoint) << status.str();
    // In a box: its tensor is named, and loading finds it as well.
    for (const StoredTensor &tensor : good->manifest().tensors)
      for (const StoredBox &box : tensor.boxes) {
        size_t size = size_t(countOf(box.extent)) * bytesOf(tensor.type);
        if (!file.ends_with(good->manifest().files[box.file].name) || at < box.offset ||
            at >= box.offset + size)
          continue;
        ++inBoxes;
        named += status.str().find("tensor " + boxText(tensor, box) + " is damaged") !=
                 std::string::npos;
        RankState state(states, {1, 1, 1}, 0);
        for (const StatePart &part : state.parts)
          EXPECT_EQ(good->load(part).ok(), part.name != tensor.name);
      }
    bytes[at] ^= bit;
  }
  EXPECT_GT(inBoxes, 3000);
  EXPECT_EQ(named, inBoxes);
  EXPECT_EQ(everything("/run", disk).str(), "");
}

TEST(TrainHostile, EveryTruncationIsFound) {
  MemoryDisk disk;
  ASSERT_TRUE(saveOn(model(), {1, 1, 1}, 1, "/run", disk));
  for (const char *file :
       {"/run/LATEST", "/run/step-1/manifest.json", "/run/step-1/rank-00000.safetensors"}) {
    MemoryDisk::Bytes &bytes = disk.contents(file), whole = bytes;
    for (size_t n = 0; n < whole.size(); n += 1 + n / 50) {
      bytes.resize(n);
      EXPECT_FALSE(everything("/run", disk)) << file << " of " << n << " bytes";
    }
    bytes = whole;
  }
}

/// A manifest whose inner text is `inner`, with the right checksum.
std::string sealed(const std::string &inner) {
  std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t *>(inner.data()), inner.size());
  return format("{\"crc32c\":\"%08x\",\"manifest\":\n", crc32c(bytes)) + inner + "\n}\n";
}

TEST(TrainHostile, ManifestsThatBreakARuleAreRefused) {
  MemoryDisk disk;
  ASSERT_TRUE(saveOn(model(), {1, 2, 1}, 1, "/run", disk));
  const MemoryDisk::Bytes whole = disk.contents("/run/step-1/manifest.json");
  std::string text(whole.begin(), whole.end());
  std::string inner = text.substr(text.find('\n') + 1);
  inner.resize(inner.size() - 3);
  ASSERT_EQ(sealed(inner), text);

  struct {
    const char *from, *to, *says;
  } const cases[] = {
      {"rank-00000.safetensors", "/etc/passwd", "not the plain name"},
      {"rank-00000.safetensors", "../step-2/a.safetensors", "not the plain name"},
      {"rank-00000.safetensors", "..", "not the plain name"},
      {"rank-00000.safetensors", "", "not the plain name"},
      {"rank-00000.safetensors", "a\\u0000b", "not the plain name"},
      {"rank-00001.safetensors", "rank-00000.safetensors", "two files are called"},
      {"rank-00001.safetensors", "manifest.json", "bytes, its manifest says"},
      {"rank-00001.safetensors", "rank-00002.safetensors", "No such file"},
      {"moira training checkpoint 1", "moira training checkpoint 2", "its format is"},
      {"\"step\":1", "\"step\":-1", "no whole number"},
      {"\"step\":1", "\"step\":1.5", "no whole number"},
      {"\"step\":1", "\"step\":\"1\"", "no whole number"},
      {"\"step\":1", "\"stop\":1", "lacks 'step'"},
      {"\"step\":1", "\"step\":1,\"more\":2", "unknown member 'more'"},
      {"\"files\":[", "\"files\":{\"a\":[", "not valid JSON"},
      {"\"name\":\"norm\"", "\"name\":\"embed\"", "two tensors are called"},
      {"\"name\":\"norm\"", "\"name\":7", "no string"},
      {"\"dtype\":\"bf16\"", "\"dtype\":\"bf17\"", "unknown dtype"},
      {"\"dtype\":\"bf16\"", "\"dtype\":\"f32\"", "is not filled by its boxes"},
      {"\"shape\":[7]", "\"shape\":[8]", "do not cover its shape [8]"},
      {"\"shape\":[7]", "\"shape\":[6]", "is no box of shape"},
      {"\"shape\":[7]", "\"shape\":[7,1]", "is no box of shape"},
      {"\"shape\":[7]", "\"shape\":[0]", "impossible shape"},
      {"\"shape\":[30,6]", "\"shape\":[70368744177664,70368744177664]", "impossible shape"},
      {"\"extent\":[7]", "\"extent\":[18446744073709551615]", "no whole number"},
      {"\"extent\":[7]", "\"extent\":[0]", "is no box of shape"},
      {"\"start\":[3,0,0]", "\"start\":[2,0,0]", "do not cover"},
      {"\"start\":[0,0,0]", "\"start\":[0,0,1]", "is no box of shape"},
      {"\"file\":1", "\"file\":2", "no whole number up to 1"},
      {"\"file\":1", "\"file\":0", "is not filled by its boxes"},
      {"\"crc32c\":\"", "\"crc32c\":\"00", "bytes of checksums where 1 chunks need 8 each"},
      {"\"crc32c\":\"", "\"crc32c\":\"0000000g", "bytes of checksums"},
      {"\"header_crc32c\":\"", "\"header_crc32c\":\"0", "no checksum of 8"},
  };
  for (const auto &c : cases) {
    std::string changed = inner;
    size_t at = changed.find(c.from);
    ASSERT_NE(at, std::string::npos) << c.from;
    changed.replace(at, std::strlen(c.from), c.to);
    std::string file = sealed(changed);
    disk.contents("/run/step-1/manifest.json") = MemoryDisk::Bytes(file.begin(), file.end());
    Status status = everything("/run", disk);
    ASSERT_FALSE(status) << c.from << " -> " << c.to;
    EXPECT_THAT(status.str(), HasSubstr(c.says)) << c.from << " -> " << c.to;
  }
  // Texts that would cost much memory.
  for (std::string hostile :
       {std::string(100'000, '['), "[" + std::string(1'000'000, ',') + "]",
        "{\"format\":\"" + std::string(2 << 20, 'x') + "\"}", std::string(30 << 20, ' ')}) {
    std::string file = sealed(hostile);
    disk.contents("/run/step-1/manifest.json") = MemoryDisk::Bytes(file.begin(), file.end());
    EXPECT_FALSE(everything("/run", disk));
  }
}

TEST(TrainHostile, LinksAreNotFollowed) {
  namespace fs = std::filesystem;
  TempDir directory;
  FileSystem &files = FileSystem::real();
  ASSERT_TRUE(saveOn(model(), {1, 1, 1}, 1, directory / "run", files));
  EXPECT_EQ(everything(directory / "run", files).str(), "");
  for (std::string name : {"run/LATEST", "run/step-1", "run/step-1/manifest.json",
                           "run/step-1/rank-00000.safetensors"}) {
    fs::rename(directory / name, directory / "elsewhere");
    fs::create_symlink(directory / "elsewhere", directory / name);
    Status status = everything(directory / "run", files);
    EXPECT_FALSE(status) << name;
    EXPECT_EQ(status.diagnostics()[0].id, ErrorId::BadCheckpoint) << status.str();
    EXPECT_THAT(status.str(), HasSubstr("link"));
    fs::remove(directory / name);
    fs::rename(directory / "elsewhere", directory / name);
  }
  EXPECT_EQ(everything(directory / "run", files).str(), "");
}

} // namespace
