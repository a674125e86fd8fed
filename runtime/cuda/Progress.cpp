//===- Progress.cpp - where on the device a step is -------------------------===//
// See Progress.h. A slot holds 0, the instruction's index + 1, or kFinished.
//===----------------------------------------------------------------------===//
#include "Progress.h"

#include "Mark.h"

#include <atomic>

namespace moira::rt::cuda {

namespace {

constexpr uint32_t kFinished = UINT32_MAX;

uint32_t load(const uint32_t *slot) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t *>(slot)).load(std::memory_order_relaxed);
}

} // namespace

Expected<Progress> Progress::make(size_t queues) {
  Expected<PinnedBlock> block = PinnedBlock::allocate(queues * sizeof(uint32_t), "progress marks");
  if (!block)
    return block.takeStatus();
  Progress progress;
  progress.block = std::move(*block);
  progress.count = queues;
  return progress;
}

void Progress::reset() {
  for (size_t q = 0; q < count; ++q)
    block.as<uint32_t>()[q] = 0;
}

cudaError_t Progress::reach(size_t queue, uint32_t instr, cudaStream_t stream) {
  return enqueueMark(block.as<uint32_t>() + queue, instr + 1, stream);
}

void Progress::assume(size_t queue, uint32_t instr) {
  std::atomic_ref<uint32_t>(block.as<uint32_t>()[queue])
      .store(instr + 1, std::memory_order_relaxed);
}

cudaError_t Progress::finish(size_t queue, cudaStream_t stream) {
  return enqueueMark(block.as<uint32_t>() + queue, kFinished, stream);
}

std::optional<uint32_t> Progress::at(size_t queue) const {
  uint32_t value = load(block.as<uint32_t>() + queue);
  if (value == 0 || value == kFinished)
    return std::nullopt;
  return value - 1;
}

uint64_t Progress::stamp() const {
  uint64_t sum = 0;
  for (size_t q = 0; q < count; ++q)
    sum = sum * 1000003 + load(block.as<uint32_t>() + q);
  return sum;
}

} // namespace moira::rt::cuda
