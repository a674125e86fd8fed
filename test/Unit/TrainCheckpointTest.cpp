//===- TrainCheckpointTest.cpp ----------------------------------*- C++ -*-===//
// Shows that checkpoints mean the same on every mesh, that saving goes on in the background, and
// that no crash or failing disk at any operation of a save harms an older checkpoint.
//===----------------------------------------------------------------------===//
#include "MemoryDisk.h"
#include "RuntimeFiles.h"
#include "TrainState.h"

#include "moira/rt/SafeTensors.h"

#include <gmock/gmock.h>

namespace fb = moira::fb;
using namespace moira::rt;
using namespace moira::test;
using testing::ElementsAre;
using testing::HasSubstr;

namespace {

/// Dense, expert and tiny tensors of several types; sizes that meshes do not divide get pads.
std::vector<TestState> smallModel() {
  return {{"embed", fb::DType::f32, {30, 6}, {0, -1}},
          {"layers.0.experts", fb::DType::f32, {8, 6, 10}, {1, -1, 2}, true},
          {"layers.0.experts.m", fb::DType::f32, {8, 6, 10}, {1, 0, -1}, true},
          {"layers.0.norm", fb::DType::bf16, {7}, {-1}},
          {"odd", fb::DType::f32, {5, 3, 9}, {2, -1, 0}},
          {"step", fb::DType::i32, {1}, {-1}},
          {"scalar", fb::DType::f64, {}, {}}};
}

const std::vector<Shape> kMeshes = {{1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {1, 1, 2},
                                    {4, 1, 1}, {1, 4, 1}, {2, 2, 1}, {2, 1, 2},
                                    {1, 2, 2}, {2, 2, 2}, {1, 8, 1}, {3, 1, 1}};

/// Loads on every rank of `mesh` and counts wrong bytes; -1 if it fails, with the problems.
int64_t loadOn(const std::vector<TestState> &states, const Shape &mesh, int version,
               const std::string &path, FileSystem &files, std::string *problems = nullptr) {
  Expected<TrainingCheckpoint> checkpoint = TrainingCheckpoint::open(path, files);
  Status status = checkpoint ? Status() : checkpoint.takeStatus();
  int64_t wrong = 0;
  for (int rank = 0; rank < countOf(mesh) && status; ++rank) {
    RankState state(states, mesh, rank);
    status = checkpoint->check(state.parts);
    for (const StatePart &part : state.parts)
      if (status)
        status = checkpoint->load(part);
    wrong += state.wrong(version);
  }
  if (problems)
    *problems = status.str();
  return status ? wrong : -1;
}

TEST(TrainCheckpoint, EveryMeshLoadsWhatAnyOtherSaved) {
  std::vector<TestState> model = smallModel();
  int pairs = 0;
  for (const Shape &from : kMeshes) {
    MemoryDisk disk;
    ASSERT_EQ(saveOn(model, from, 3, "/run", disk).str(), "");
    Expected<TrainingCheckpoint> checkpoint = TrainingCheckpoint::open("/run", disk);
    ASSERT_TRUE(checkpoint) << checkpoint.status().str();
    EXPECT_EQ(checkpoint->verify().str(), "");
    EXPECT_EQ(checkpoint->manifest().progress.step, 3u);
    EXPECT_EQ(checkpoint->manifest().progress.seed, 7u);
    EXPECT_EQ(checkpoint->manifest().progress.data, "{\"epoch\":3}");
    // One box an expert, whatever the mesh.
    const StoredTensor *experts = checkpoint->manifest().find("layers.0.experts");
    for (const StoredBox &box : experts->boxes)
      EXPECT_EQ(box.extent[0], 1);
    for (const Shape &to : kMeshes) {
      EXPECT_EQ(loadOn(model, to, 3, "/run", disk), 0);
      ++pairs;
    }
  }
  EXPECT_GE(pairs, 144);
}

TEST(TrainCheckpoint, ChunksOfLargeTensorsAreCutAtAnyPlace) {
  // 12 MiB and a bit: four chunks, cut by other meshes in the middle of chunks.
  std::vector<TestState> model = {{"w", fb::DType::f32, {1021, 3079}, {0, 1}}};
  MemoryDisk disk;
  ASSERT_EQ(saveOn(model, {1, 1, 1}, 1, "/run", disk).str(), "");
  for (const Shape &to : {Shape{1, 1, 1}, Shape{3, 1, 1}, Shape{1, 2, 1}})
    EXPECT_EQ(loadOn(model, to, 1, "/run", disk), 0);
}

TEST(TrainCheckpoint, OtherToolsReadTheFiles) {
  TempDir directory;
  std::vector<TestState> model = smallModel();
  ASSERT_EQ(saveOn(model, {1, 2, 1}, 5, directory / "run", FileSystem::real()).str(), "");
  EXPECT_EQ(loadOn(model, {2, 1, 1}, 5, directory / "run", FileSystem::real()), 0);
  Expected<SafeTensorsFile> file =
      SafeTensorsFile::open(directory / "run/step-5/rank-00001.safetensors");
  ASSERT_TRUE(file) << file.status().str();
  const TensorInfo *box = file->find("layers.0.experts[4:5, 0:6, 0:10]");
  ASSERT_TRUE(box);
  EXPECT_THAT(box->shape, ElementsAre(1, 6, 10));
  for (size_t i = 0; i < box->bytes; ++i)
    EXPECT_EQ(file->data(*box)[i], valueOf(model[1], 4 * 60 + int64_t(i / 4), i % 4, 5));
}

TEST(TrainCheckpoint, TrainingGoesOnWhileASaveIsWritten) {
  std::vector<TestState> model = smallModel();
  MemoryDisk disk;
  onRanks(2, [&](Communicator &communicator) {
    RankState state(model, {2, 1, 1}, communicator.rank());
    state.fill(1);
    CheckpointSaver saver("/run", 2, disk);
    TrainingProgress progress;
    progress.step = 1;
    disk.hold(true);
    ASSERT_TRUE(saver.begin(state.parts, progress, communicator));
    state.fill(2); // the next step's update
    EXPECT_FALSE(saver.poll(communicator, false).has_value());
    EXPECT_TRUE(saver.busy());
    ASSERT_TRUE(communicator.barrier("test"));
    disk.hold(false);
    std::optional<Status> status = saver.poll(communicator, true);
    ASSERT_TRUE(status.has_value());
    EXPECT_EQ(status->str(), "");
    EXPECT_FALSE(saver.busy());
  });
  EXPECT_EQ(loadOn(model, {1, 1, 1}, 1, "/run", disk), 0);
}

TEST(TrainCheckpoint, TheNewestAreKept) {
  std::vector<TestState> model = smallModel();
  MemoryDisk disk;
  for (int step : {1, 2, 10, 11, 12})
    ASSERT_EQ(saveOn(model, {1, 1, 1}, step, "/run", disk, 3).str(), "");
  EXPECT_THAT(listCheckpoints("/run", disk), ElementsAre("step-10", "step-11", "step-12"));
  // A run that has gone back keeps what it saves, though it is not the highest step.
  ASSERT_EQ(saveOn(model, {1, 1, 1}, 4, "/run", disk, 2).str(), "");
  EXPECT_THAT(listCheckpoints("/run", disk), ElementsAre("step-4", "step-12"));
  EXPECT_EQ(loadOn(model, {1, 1, 1}, 4, "/run", disk), 0);
  // Fewer than two are never kept, and a step can be saved again.
  ASSERT_EQ(saveOn(model, {2, 1, 1}, 4, "/run", disk, 0).str(), "");
  EXPECT_THAT(listCheckpoints("/run", disk), ElementsAre("step-4", "step-12"));
  EXPECT_EQ(loadOn(model, {1, 1, 1}, 4, "/run", disk), 0);
}

TEST(TrainCheckpoint, NoCrashHarmsAnOlderCheckpoint) {
  std::vector<TestState> model = smallModel();
  Shape mesh = {2, 1, 1};
  int points = 0;
  for (bool power : {false, true}) {
    for (int at = 1;; ++at) {
      MemoryDisk disk;
      ASSERT_EQ(saveOn(model, mesh, 1, "/run", disk).str(), "");
      ASSERT_EQ(saveOn(model, mesh, 2, "/run", disk).str(), "");
      disk.crashAt(at);
      Status during = saveOn(model, mesh, 3, "/run", disk);
      bool crashed = disk.crashed();
      disk.restart(power);
      Expected<TrainingCheckpoint> checkpoint = TrainingCheckpoint::open("/run", disk);
      ASSERT_TRUE(checkpoint) << "crash at " << at << ": " << checkpoint.status().str();
      EXPECT_EQ(checkpoint->verify().str(), "");
      int found = int(checkpoint->manifest().progress.step);
      EXPECT_TRUE(found == 2 || found == 3);
      EXPECT_TRUE(!during || found == 3) << "a finished save was lost by a crash at " << at;
      EXPECT_EQ(loadOn(model, mesh, found, "/run", disk), 0);
      EXPECT_GE(listCheckpoints("/run", disk).size(), 2u);
      for (const std::string &name : listCheckpoints("/run", disk)) {
        Expected<TrainingCheckpoint> any = TrainingCheckpoint::open("/run/" + name, disk);
        ASSERT_TRUE(any) << name << " after a crash at " << at;
        EXPECT_EQ(any->verify().str(), "");
      }
      // The next save works and leaves nothing unfinished.
      ASSERT_EQ(saveOn(model, mesh, 4, "/run", disk).str(), "");
      EXPECT_EQ(loadOn(model, mesh, 4, "/run", disk), 0);
      std::vector<std::string> names;
      ASSERT_EQ(disk.list("/run", names), 0);
      for (const std::string &name : names)
        EXPECT_FALSE(name.ends_with(".tmp")) << name << " after a crash at " << at;
      if (!crashed)
        break;
      ++points;
    }
  }
  EXPECT_GE(points, 2 * 40);
}

TEST(TrainCheckpoint, AFailingDiskIsReportedAndTheNextSaveWorks) {
  std::vector<TestState> model = smallModel();
  Shape mesh = {2, 1, 1};
  int failures = 0, reported = 0;
  for (int error : {ENOSPC, EROFS, EIO})
    for (int times : {1, 1000})
      for (int at = 1;; ++at) {
        MemoryDisk disk;
        ASSERT_EQ(saveOn(model, mesh, 1, "/run", disk).str(), "");
        int before = disk.operations();
        disk.failAt(at, error, times);
        Status status = saveOn(model, mesh, 2, "/run", disk);
        if (disk.operations() < at && before > 0)
          break;
        ++failures;
        if (!status) {
          ++reported;
          EXPECT_EQ(status.diagnostics()[0].id, ErrorId::CannotWrite);
          EXPECT_THAT(status.str(), HasSubstr(std::strerror(error)));
          EXPECT_THAT(status.str(), HasSubstr("/run"));
        }
        disk.restart(false);
        Expected<TrainingCheckpoint> checkpoint = TrainingCheckpoint::open("/run", disk);
        ASSERT_TRUE(checkpoint) << checkpoint.status().str();
        int found = int(checkpoint->manifest().progress.step);
        EXPECT_TRUE(status ? found == 2 : found == 1 || found == 2);
        EXPECT_EQ(loadOn(model, mesh, found, "/run", disk), 0);
        ASSERT_EQ(saveOn(model, mesh, 3, "/run", disk).str(), "");
        EXPECT_EQ(loadOn(model, mesh, 3, "/run", disk), 0);
      }
  EXPECT_GE(failures, 3 * 2 * 40);
  EXPECT_GE(reported, failures / 2);
}

TEST(TrainCheckpoint, AFullDiskSaysHowMuchItNeeds) {
  std::vector<TestState> model = smallModel();
  MemoryDisk disk;
  disk.failAt(5, ENOSPC, 1000);
  std::string text = saveOn(model, {1, 1, 1}, 1, "/run", disk).str();
  EXPECT_THAT(text, HasSubstr("MOE-0107"));
  EXPECT_THAT(text, HasSubstr("rank-00000.safetensors: writing failed (No space left on device), "
                              "the file needs "));
}

TEST(TrainCheckpoint, ThereMayBeNone) {
  MemoryDisk disk;
  for (const char *path : {"/run", "/empty"}) {
    if (std::string(path) == "/empty")
      ASSERT_EQ(disk.makeDirectory(path), 0);
    Expected<TrainingCheckpoint> checkpoint = TrainingCheckpoint::open(path, disk);
    ASSERT_FALSE(checkpoint);
    EXPECT_EQ(checkpoint.status().diagnostics()[0].id, ErrorId::FileNotFound);
  }
}

TEST(TrainCheckpoint, AnotherModelIsRefusedWithEveryDifference) {
  std::vector<TestState> model = smallModel(), other = smallModel();
  other[0].shape = {31, 6};
  other[3].type = fb::DType::f32;
  other[4].name = "even";
  MemoryDisk disk;
  ASSERT_EQ(saveOn(model, {1, 1, 1}, 1, "/run", disk).str(), "");
  std::string problems;
  EXPECT_EQ(loadOn(other, {1, 1, 1}, 1, "/run", disk, &problems), -1);
  EXPECT_THAT(problems, HasSubstr("MOE-0304"));
  EXPECT_THAT(problems, HasSubstr("'embed' is of shape [30, 6], the plan has [31, 6]"));
  EXPECT_THAT(problems, HasSubstr("'layers.0.norm' is bf16, the plan has f32"));
  EXPECT_THAT(problems, HasSubstr("'even' is missing"));
  EXPECT_THAT(problems, HasSubstr("'odd' is not used"));
}

} // namespace
