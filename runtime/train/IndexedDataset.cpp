//===- IndexedDataset.cpp - Megatron's .bin and .idx ----------------------===//
// Reading and checking. See TokenData.h.
//===----------------------------------------------------------------------===//
#include "../core/MappedFile.h"
#include "moira/rt/TokenData.h"

#include <algorithm>
#include <cstring>

namespace moira::rt {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr size_t kHeader = 9 + 8 + 1 + 8 + 8;
/// Bytes of each type code; 0: no integers.
constexpr int kTypeBytes[] = {0, 1, 1, 2, 4, 8, 0, 0, 2};
enum TypeCode { u8 = 1, i8, i16, i32, i64, f64, f32, u16 };

template <typename T> T load(const uint8_t *at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

int64_t tokenAt(const uint8_t *at, int type) {
  switch (type) {
  case u8:
    return *at;
  case i8:
    return load<int8_t>(at);
  case i16:
    return load<int16_t>(at);
  case u16:
    return load<uint16_t>(at);
  case i32:
    return load<int32_t>(at);
  default:
    return load<int64_t>(at);
  }
}

} // namespace

Expected<IndexedDataset> IndexedDataset::open(const std::string &prefix) {
  std::string path = prefix + ".idx";
  Expected<MappedFile> index = MappedFile::open(path);
  if (!index)
    return index.takeStatus();
  Expected<MappedFile> data = MappedFile::open(prefix + ".bin");
  if (!data)
    return data.takeStatus();
  auto bad = [&](const std::string &what) { return Status(ErrorId::BadInput, path + ": " + what); };
  std::span<const uint8_t> bytes = index->bytes;
  if (bytes.size() < kHeader || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
    return bad("is no index of a Megatron dataset (it does not begin with MMIDIDX)");
  if (uint64_t version = load<uint64_t>(&bytes[9]); version != 1)
    return bad(format("is of version %llu, this reads 1", (unsigned long long)version));
  int type = bytes[17];
  int size = type < static_cast<int>(std::size(kTypeBytes)) ? kTypeBytes[type] : 0;
  if (size == 0)
    return bad(format("its tokens have type code %d, which is none of integers (1 to 5, 8)", type));
  uint64_t sequences = load<uint64_t>(&bytes[18]), documents = load<uint64_t>(&bytes[26]);
  uint64_t left = bytes.size() - kHeader;
  if (sequences > left / 12 || documents > (left - sequences * 12) / 8)
    return bad(format("%llu bytes, too few for %llu sequences and %llu documents",
                      (unsigned long long)bytes.size(), (unsigned long long)sequences,
                      (unsigned long long)documents));
  // Behind the documents there may be a byte for each sequence (its mode, for pictures).
  uint64_t rest = left - sequences * 12 - documents * 8;
  if (rest != 0 && rest != sequences)
    return bad(format("%llu bytes behind its tables", (unsigned long long)rest));

  IndexedDataset dataset;
  dataset.name = prefix;
  dataset.type = type;
  dataset.bin = data->bytes;
  dataset.owner = data->owner;
  const uint8_t *lengths = bytes.data() + kHeader, *offsets = lengths + sequences * 4,
                *firsts = offsets + sequences * 8;
  dataset.starts.reserve(sequences + 1);
  dataset.offsets.reserve(sequences);
  dataset.starts.push_back(0);
  for (uint64_t i = 0; i < sequences; ++i) {
    int64_t length = load<int32_t>(lengths + i * 4), offset = load<int64_t>(offsets + i * 8);
    int64_t end = static_cast<int64_t>(data->fileBytes);
    if (length < 0 || offset < 0 || offset % size != 0 || offset > end ||
        length > (end - offset) / size)
      return bad(format("sequence %llu of %lld tokens at byte %lld does not lie in the %lld bytes "
                        "of the .bin file",
                        (unsigned long long)i, (long long)length, (long long)offset,
                        (long long)end));
    dataset.starts.push_back(dataset.starts.back() + length);
    dataset.offsets.push_back(offset);
  }
  int64_t before = 0;
  for (uint64_t i = 0; i < documents; ++i) {
    int64_t first = load<int64_t>(firsts + i * 8);
    if (first < before || first > static_cast<int64_t>(sequences) || (i == 0 && first != 0))
      return bad(format("document %llu begins at sequence %lld, out of order",
                        (unsigned long long)i, (long long)first));
    before = first;
  }
  return dataset;
}

Status IndexedDataset::read(int64_t first, std::span<int32_t> to, int64_t vocabulary) const {
  int size = kTypeBytes[type];
  size_t sequence = static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), first) -
                                        starts.begin() - 1);
  for (size_t i = 0; i < to.size(); ++i, ++first) {
    while (first >= starts[sequence + 1])
      ++sequence;
    int64_t offset = offsets[sequence] + (first - starts[sequence]) * size;
    int64_t token = tokenAt(bin.data() + offset, type);
    if (token < 0 || token >= vocabulary)
      return Status(ErrorId::BadInput,
                    format("%s.bin: token %lld at byte %lld is out of range 0..%lld; is it made "
                           "with the model's tokenizer?",
                           name.c_str(), (long long)token, (long long)offset,
                           (long long)vocabulary - 1));
    to[i] = static_cast<int32_t>(token);
  }
  return {};
}

} // namespace moira::rt
