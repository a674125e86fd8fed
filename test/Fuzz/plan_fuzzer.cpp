// Shows that no bytes can crash the plan loader and verifier, and that no plan that they accept
// makes a host call leave its views. The header and the checksums are made right before loading, so
// that the search gets past them.
#include "../Unit/PlanTestBuilder.h"
#include "PlanInterpreter.h"

#include "moira/rt/Device.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

using namespace moira::rt;
namespace fb = moira::fb;

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t maxSize);

namespace {

constexpr size_t kBufferAt = 40;

/// Section checksums, if the sections can be found.
void fixSections(std::vector<uint8_t> &file, uint64_t length) {
  flatbuffers::Verifier verifier(file.data() + kBufferAt, length, 64,
                                 static_cast<flatbuffers::uoffset_t>(length / 8 + 64));
  if (length < 8 || !fb::VerifyPlanBuffer(verifier))
    return;
  fb::Plan *plan = flatbuffers::GetMutableRoot<fb::Plan>(file.data() + kBufferAt);
  size_t most = 8;
  for (const fb::Section *section : *plan->sections()) {
    if (most-- == 0)
      return;
    if (section->offset() >= kBufferAt + length && section->offset() <= file.size() &&
        section->length() <= file.size() - section->offset()) {
      uint32_t sum = crc32c({file.data() + section->offset(), section->length()});
      auto *table =
          const_cast<flatbuffers::Table *>(reinterpret_cast<const flatbuffers::Table *>(section));
      table->SetField<uint32_t>(fb::Section::VT_CRC32C, sum);
    }
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const bool once = (setHostThreads(1), true);
  (void)once;
  std::span<const uint8_t> bytes(data, size);
  (void)PlanFile::fromBytes(bytes); // as it is: mostly the header's checks
  if (size < kBufferAt)
    return 0;
  std::vector<uint8_t> file(bytes.begin(), bytes.end());
  uint64_t length;
  std::memcpy(&length, file.data() + 32, sizeof(length));
  if (length > size - kBufferAt) {
    length = size - kBufferAt;
    std::memcpy(file.data() + 32, &length, sizeof(length));
  }
  fixSections(file, length);
  test::reseal(file);
  Expected<PlanFile> plan = PlanFile::fromBytes(file);
  if (!plan) {
    if (plan.status().ok() || plan.status().str().empty())
      std::abort(); // a refusal without a reason
    return 0;
  }
  if (!test::viewsInsideArenas(*plan))
    std::abort();
  test::interpret(*plan, crc32c(bytes));
  return 0;
}

/// Half of the changes set one aligned word to a value that means something in a plan: a limit, a
/// neighbour of what stands there, or a word from elsewhere in the file.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t maxSize,
                                          unsigned int seed) {
  std::minstd_rand random(seed);
  if (size < kBufferAt + 16 || random() % 2)
    return LLVMFuzzerMutate(data, size, maxSize);
  static constexpr size_t kWidths[] = {1, 2, 4, 8};
  size_t changes = 1 + random() % 3;
  for (size_t i = 0; i < changes; ++i) {
    size_t width = kWidths[random() % 4];
    auto place = [&] { return kBufferAt + random() % ((size - kBufferAt) / width) * width; };
    size_t to = place();
    uint64_t value = 0;
    switch (random() % 4) {
    case 0: {
      static constexpr uint64_t kValues[] = {0,  1,   2,       3,          4,          7,
                                             8,  64,  0x7f,    0xffff,     0x7fffffff, 0xffffffff,
                                             16, 128, 1 << 20, UINT64_MAX, INT64_MAX,  1ull << 47};
      value = kValues[random() % std::size(kValues)];
      break;
    }
    case 1:
      std::memcpy(&value, data + to, width);
      value += random() % 3 - 1;
      break;
    case 2:
      std::memcpy(&value, data + to, width);
      value = random() % 2 ? value * 2 : value / 2;
      break;
    default:
      std::memcpy(&value, data + place(), width);
    }
    std::memcpy(data + to, &value, width);
  }
  return size;
}
