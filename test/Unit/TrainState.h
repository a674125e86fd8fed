//===- TrainState.h - training state of many meshes for tests ---*- C++ -*-===//
// Tensors with known values, cut for any mesh by arithmetic of its own, and threads as ranks.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_TRAINSTATE_H
#define MOIRA_TEST_UNIT_TRAINSTATE_H

#include "moira/rt/CheckpointSaver.h"
#include "moira/rt/Communicator.h"

#include <cstring>
#include <functional>
#include <thread>

namespace moira::test {

namespace fb = moira::fb;
using Shape = std::vector<int64_t>;

/// A tensor of the state: dimension d is cut over the mesh axis axes[d] (−1: over none).
struct TestState {
  std::string name;
  fb::DType type;
  Shape shape;
  std::vector<int> axes;
  bool experts = false;
};

inline int64_t countOf(const Shape &shape) {
  int64_t n = 1;
  for (int64_t d : shape)
    n *= d;
  return n;
}

/// A byte of an element of a tensor: what every save of `version` holds there.
inline uint8_t valueOf(const TestState &state, int64_t element, size_t byte, int version) {
  uint64_t h = std::hash<std::string>()(state.name) +
               0x9E3779B97F4A7C15u * uint64_t(element * 8 + int64_t(byte) + 1);
  h = (h ^ (h >> 29)) * (0xBF58476D1CE4E5B9u + uint64_t(version) * 2);
  return static_cast<uint8_t>(h >> 56);
}

/// One rank's memory of all tensors.
class RankState {
public:
  RankState(const std::vector<TestState> &states, const Shape &mesh, int rank) : states(states) {
    Shape place(mesh.size());
    int64_t rest = rank;
    for (size_t a = mesh.size(); a-- > 0; rest /= mesh[a])
      place[a] = rest % mesh[a];
    for (const TestState &state : states) {
      rt::StatePart part;
      part.name = state.name;
      part.type = state.type;
      part.experts = state.experts;
      rt::Shard &shard = part.shard;
      shard.global = state.shape;
      std::vector<bool> used(mesh.size(), false);
      for (size_t d = 0; d < state.shape.size(); ++d) {
        int axis = state.axes[d];
        int64_t size = axis < 0 ? 1 : mesh[axis], index = axis < 0 ? 0 : place[axis];
        int64_t local = (state.shape[d] + size - 1) / size;
        int64_t start = std::min(index * local, state.shape[d]);
        shard.local.push_back(local);
        shard.start.push_back(start);
        shard.valid.push_back(std::min(local, state.shape[d] - start));
        if (axis >= 0)
          used[axis] = true;
      }
      for (size_t a = 0; a < mesh.size(); ++a)
        shard.owner &= used[a] || place[a] == 0;
      memory.emplace_back(size_t(countOf(shard.local)) * rt::bytesOf(state.type), kPad);
      part.data = memory.back().data();
      parts.push_back(part);
    }
  }
  RankState(const RankState &) = delete;

  std::vector<rt::StatePart> parts;

  void fill(int version) {
    each([&](uint8_t &byte, const TestState &state, int64_t element, size_t b) {
      byte = element < 0 ? kPad : valueOf(state, element, b, version);
    });
  }
  /// Bytes that are not those of `version` (pads: not as they were).
  int64_t wrong(int version) {
    int64_t n = 0;
    each([&](uint8_t &byte, const TestState &state, int64_t element, size_t b) {
      n += byte != (element < 0 ? kPad : valueOf(state, element, b, version));
    });
    return n;
  }

private:
  static constexpr uint8_t kPad = 0xA5;

  template <typename Fn> void each(Fn fn) {
    for (size_t t = 0; t < parts.size(); ++t) {
      const rt::Shard &shard = parts[t].shard;
      size_t bytes = rt::bytesOf(parts[t].type);
      for (int64_t i = 0; i < countOf(shard.local); ++i) {
        int64_t element = 0, rest = i;
        bool pad = false;
        Shape index(shard.local.size());
        for (size_t d = index.size(); d-- > 0; rest /= shard.local[d])
          index[d] = rest % shard.local[d];
        for (size_t d = 0; d < index.size(); ++d) {
          pad |= index[d] >= shard.valid[d];
          element = element * shard.global[d] + shard.start[d] + index[d];
        }
        for (size_t b = 0; b < bytes; ++b)
          fn(memory[t][size_t(i) * bytes + b], states[t], pad ? -1 : element, b);
      }
    }
  }

  const std::vector<TestState> &states;
  std::vector<std::vector<uint8_t>> memory;
};

/// Runs fn(communicator) on `count` ranks as threads.
inline void onRanks(int count, const std::function<void(rt::Communicator &)> &fn) {
  auto communicators = rt::makeThreadCommunicators(count, 60);
  std::vector<std::thread> threads;
  for (int r = 1; r < count; ++r)
    threads.emplace_back([&, r] { fn(*communicators[size_t(r)]); });
  fn(*communicators[0]);
  for (std::thread &thread : threads)
    thread.join();
}

/// Saves `version` of the state as step `version`; the result that all ranks had.
inline rt::Status saveOn(const std::vector<TestState> &states, const Shape &mesh, int version,
                         const std::string &directory, rt::FileSystem &files, size_t keep = 2) {
  std::vector<rt::Status> results(size_t(countOf(mesh)));
  onRanks(int(countOf(mesh)), [&](rt::Communicator &communicator) {
    RankState state(states, mesh, communicator.rank());
    state.fill(version);
    rt::CheckpointSaver saver(directory, keep, files);
    rt::TrainingProgress progress;
    progress.step = uint64_t(version);
    progress.seed = 7;
    progress.planHash = "0123";
    progress.data = "{\"epoch\":" + std::to_string(version) + "}";
    rt::Status status = saver.begin(state.parts, progress, communicator);
    if (status)
      status = *saver.poll(communicator, true);
    results[size_t(communicator.rank())] = status;
  });
  for (const rt::Status &status : results)
    if (status.str() != results[0].str())
      return rt::Status(rt::ErrorId::Internal,
                        "ranks disagree: " + status.str() + " and " + results[0].str());
  return results[0];
}

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_TRAINSTATE_H
