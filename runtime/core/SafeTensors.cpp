//===- SafeTensors.cpp - reading safetensors files ------------------------===//
// The header's grammar and the layout rules of the format: an object of records, no duplicate keys,
// sizes that agree with types and shapes, data without holes or overlap that fills the file.
//===----------------------------------------------------------------------===//
#include "moira/rt/SafeTensors.h"

#include "JsonLimits.h"
#include "MappedFile.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

namespace moira::rt {
namespace {

struct TypeRow {
  const char *name;
  int bits;
};
constexpr TypeRow kTypes[] = {{"BOOL", 8},    {"U8", 8},      {"I8", 8},      {"F8_E5M2", 8},
                              {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6},
                              {"F4", 4},      {"I16", 16},    {"U16", 16},    {"F16", 16},
                              {"BF16", 16},   {"I32", 32},    {"U32", 32},    {"F32", 32},
                              {"I64", 64},    {"U64", 64},    {"F64", 64},    {"C64", 64}};

constexpr uint64_t kHeaderLimit = 100'000'000; // the format's own limit
constexpr size_t kRankLimit = 16;
constexpr size_t kMetadataLimit = 10'000;
constexpr uint64_t kSizeLimit = uint64_t(1) << 62; // keeps every sum and product below in range
// No record is shorter in text, which bounds how many there can be.
constexpr size_t kShortestRecord = 48;

/// Collects problems of one file; keeps the first few and counts the rest.
class Problems {
public:
  explicit Problems(const std::string &path) : path(path) {}
  void add(const std::string &what) {
    if (++count <= kShown)
      status.add(ErrorId::BadSafetensors, path + ": " + what);
  }
  bool any() const { return count > 0; }
  Status take() {
    if (count > kShown)
      status.add(ErrorId::BadSafetensors,
                 format("%s: and %zu more problems", path.c_str(), count - kShown));
    return std::move(status);
  }

private:
  static constexpr size_t kShown = 20;
  std::string path;
  Status status;
  size_t count = 0;
};

/// Events of the JSON parser turned into tensor records (offsets relative to the data).
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
public:
  HeaderReader(Problems &problems, std::vector<TensorInfo> &infos,
               std::map<std::string, std::string> &meta)
      : problems(problems), infos(infos), meta(meta) {}

  bool start_object(size_t) override {
    switch (place) {
    case Place::outside:
      place = Place::top;
      return true;
    case Place::top:
      if (name == kMetadataKey) {
        if (metadataSeen)
          problems.add("the header has two __metadata__ entries");
        metadataSeen = true;
        place = Place::metadata;
        return true;
      }
      record = TensorInfo();
      seen = 0;
      begin = end = 0;
      broken = false;
      place = Place::tensor;
      return true;
    default:
      return stop("an object where none belongs");
    }
  }
  bool end_object() override {
    if (place == Place::tensor)
      finish();
    place = place == Place::top ? Place::outside : Place::top;
    return true;
  }
  bool key(string_t &text) override {
    if (place == Place::top) {
      name = std::move(text);
      return true;
    }
    field = std::move(text);
    return true;
  }
  bool start_array(size_t) override {
    if (place == Place::tensor && (field == "shape" || field == "data_offsets")) {
      mark(field == "shape" ? 2 : 4);
      place = field == "shape" ? Place::shape : Place::offsets;
      offsetCount = 0;
      return true;
    }
    return stop("a list where none belongs");
  }
  bool end_array() override {
    if (place == Place::offsets && offsetCount != 2)
      bad(format("data_offsets has %zu numbers, not 2", offsetCount));
    place = Place::tensor;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (place == Place::shape) {
      if (value > kSizeLimit)
        bad(format("dimension %zu is %llu, too large", record.shape.size(),
                   static_cast<unsigned long long>(value)));
      else if (record.shape.size() == kRankLimit)
        bad(format("more than %zu dimensions", kRankLimit));
      else
        record.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place == Place::offsets) {
      (offsetCount == 0 ? begin : end) = value;
      ++offsetCount;
      return true;
    }
    return scalar("a number");
  }
  bool number_integer(number_integer_t value) override {
    if (place == Place::shape || place == Place::offsets) {
      bad(format("%lld in %s, negative", static_cast<long long>(value), listName()));
      ++offsetCount;
      return true;
    }
    return scalar("a number");
  }
  bool number_float(number_float_t, const string_t &text) override {
    if (place == Place::shape || place == Place::offsets) {
      bad(format("%s in %s is not a 64-bit integer", quoteName(text).c_str(), listName()));
      ++offsetCount;
      return true;
    }
    return scalar("a number");
  }
  bool string(string_t &text) override {
    if (place == Place::metadata) {
      if (meta.size() >= kMetadataLimit)
        return stop(format("more than %zu entries in __metadata__", kMetadataLimit));
      std::string shown = quoteName(field);
      if (!meta.emplace(std::move(field), std::move(text)).second)
        problems.add(format("__metadata__ has the key %s twice", shown.c_str()));
      return true;
    }
    if (place == Place::tensor && field == "dtype") {
      mark(1);
      auto *row = std::find_if(std::begin(kTypes), std::end(kTypes),
                               [&](const TypeRow &r) { return text == r.name; });
      if (row == std::end(kTypes))
        bad(format("unknown dtype %s", quoteName(text).c_str()));
      else
        record.type = static_cast<TensorType>(row - kTypes);
      return true;
    }
    return scalar("a string");
  }
  bool boolean(bool) override { return scalar("true or false"); }
  bool null() override { return scalar("null"); }
  bool binary(binary_t &) override { return scalar("binary data"); }
  bool parse_error(size_t position, const std::string &,
                   const nlohmann::json::exception &) override {
    problems.add(format("the header is not valid JSON at byte %zu of the file", position + 7));
    return false;
  }

private:
  enum class Place { outside, top, metadata, tensor, shape, offsets };

  const char *listName() const { return place == Place::shape ? "shape" : "data_offsets"; }
  /// A problem of the current tensor; reading goes on.
  void bad(const std::string &what) {
    broken = true;
    problems.add(format("tensor %s: %s", quoteName(name).c_str(), what.c_str()));
  }
  /// A structure that cannot be read any further.
  bool stop(const std::string &what) {
    problems.add(format("the header has %s, at entry %s", what.c_str(), quoteName(name).c_str()));
    return false;
  }
  /// A scalar where it may not stand.
  bool scalar(const char *what) {
    switch (place) {
    case Place::tensor:
      if (field == "dtype" || field == "shape" || field == "data_offsets")
        mark(field == "dtype" ? 1 : field == "shape" ? 2 : 4);
      bad(format("%s is %s", quoteName(field).c_str(), what));
      return true;
    case Place::shape:
    case Place::offsets:
      bad(format("%s in %s", what, listName()));
      ++offsetCount;
      return true;
    case Place::metadata:
      problems.add(format("__metadata__: the value of %s is %s, not a string",
                          quoteName(field).c_str(), what));
      return true;
    default:
      return stop(format("%s where an object belongs", what));
    }
  }
  void mark(unsigned bit) {
    if (seen & bit)
      bad(format("the key %s stands twice", quoteName(field).c_str()));
    seen |= bit;
  }
  void finish() {
    if (!(seen & 1))
      bad("no dtype");
    if (!(seen & 2))
      bad("no shape");
    if (!(seen & 4))
      bad("no data_offsets");
    if (broken)
      return;
    // Zeros are left out of the product so that no partial product can overflow either.
    unsigned __int128 nonZero = 1;
    bool empty = false;
    for (int64_t d : record.shape) {
      empty |= d == 0;
      nonZero *= d == 0 ? 1 : d;
      if (nonZero > kSizeLimit)
        return bad(format("shape %s has too many elements", shapeText(record.shape).c_str()));
    }
    unsigned __int128 bits = (empty ? 0 : nonZero) * bitsOf(record.type);
    if (bits % 8 != 0 || bits / 8 > kSizeLimit)
      return bad(format("shape %s of %s is not a whole number of bytes below 2^62",
                        shapeText(record.shape).c_str(), nameOf(record.type)));
    uint64_t bytes = static_cast<uint64_t>(bits / 8);
    if (begin > end || end > kSizeLimit || end - begin != bytes)
      return bad(format("data_offsets [%llu, %llu] do not hold the %llu bytes of %s %s",
                        static_cast<unsigned long long>(begin),
                        static_cast<unsigned long long>(end),
                        static_cast<unsigned long long>(bytes), nameOf(record.type),
                        shapeText(record.shape).c_str()));
    record.offset = begin;
    record.bytes = bytes;
    record.name = std::move(name);
    infos.push_back(std::move(record));
  }

  Problems &problems;
  std::vector<TensorInfo> &infos;
  std::map<std::string, std::string> &meta;
  Place place = Place::outside;
  std::string name, field;
  TensorInfo record;
  unsigned seen = 0; // 1 dtype, 2 shape, 4 data_offsets
  size_t offsetCount = 0;
  uint64_t begin = 0, end = 0;
  bool broken = false, metadataSeen = false;
};

uint64_t littleEndian64(const uint8_t *p) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i)
    value = value << 8 | p[i];
  return value;
}

/// Holes, overlaps and the end of the data. `dataBytes` is what the file has.
/// Returns whether the data ends early.
bool checkLayout(const std::vector<TensorInfo> &infos, uint64_t dataBytes, bool allowTruncated,
                 Problems &problems) {
  std::vector<uint32_t> order(infos.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    auto key = [&](uint32_t i) {
      return std::make_pair(infos[i].offset, infos[i].offset + infos[i].bytes);
    };
    return key(a) != key(b) ? key(a) < key(b) : a < b;
  });
  uint64_t cursor = 0;
  const TensorInfo *previous = nullptr, *firstBeyond = nullptr;
  size_t beyond = 0;
  for (uint32_t i : order) {
    const TensorInfo &t = infos[i];
    if (t.offset > cursor)
      problems.add(format("%llu bytes before tensor %s belong to no tensor",
                          static_cast<unsigned long long>(t.offset - cursor),
                          quoteName(t.name).c_str()));
    else if (t.offset < cursor)
      problems.add(format("tensor %s overlaps tensor %s by %llu bytes", quoteName(t.name).c_str(),
                          quoteName(previous->name).c_str(),
                          static_cast<unsigned long long>(cursor - t.offset)));
    if (t.offset + t.bytes >= cursor)
      previous = &t;
    cursor = std::max(cursor, t.offset + t.bytes);
    if (t.offset + t.bytes > dataBytes) {
      ++beyond;
      if (!firstBeyond)
        firstBeyond = &t;
    }
  }
  if (cursor < dataBytes)
    problems.add(format("%llu bytes at the end belong to no tensor",
                        static_cast<unsigned long long>(dataBytes - cursor)));
  if (beyond && !allowTruncated)
    problems.add(format("the file is truncated: its data has %llu bytes, the header describes "
                        "%llu; tensor %s and %zu others are incomplete; fetch the file again",
                        static_cast<unsigned long long>(dataBytes),
                        static_cast<unsigned long long>(cursor),
                        quoteName(firstBeyond->name).c_str(), beyond - 1));
  return beyond != 0;
}

} // namespace

int bitsOf(TensorType type) { return kTypes[static_cast<size_t>(type)].bits; }
const char *nameOf(TensorType type) { return kTypes[static_cast<size_t>(type)].name; }

Status SafeTensorsFile::parse(std::span<const uint8_t> prefix, uint64_t fileBytes,
                              bool allowTruncated) {
  Problems problems(filePath);
  auto fail = [&](const std::string &what) {
    problems.add(what);
    return problems.take();
  };
  if (fileBytes < 8)
    return fail(format("%llu bytes are too few for a safetensors file",
                       static_cast<unsigned long long>(fileBytes)));
  uint64_t headerBytes = littleEndian64(prefix.data());
  if (headerBytes > kHeaderLimit)
    return fail(format("the header's length is %llu bytes, the format allows %llu",
                       static_cast<unsigned long long>(headerBytes),
                       static_cast<unsigned long long>(kHeaderLimit)));
  if (headerBytes > fileBytes - 8)
    return fail(format("the file ends in its header (%llu bytes, the header alone needs %llu)",
                       static_cast<unsigned long long>(fileBytes),
                       static_cast<unsigned long long>(headerBytes + 8)));
  std::span<const uint8_t> header = prefix.subspan(8, headerBytes);
  if (header.empty() || header[0] != '{')
    return fail("the header does not start with '{'");
  JsonShape shape = scanJson(header);
  if (shape.longestString > kJsonStringLimit)
    return fail(format("the header has a string of %zu bytes, at most %zu are allowed",
                       shape.longestString, kJsonStringLimit));
  infos.reserve(std::min(shape.objects, headerBytes / kShortestRecord + 1));
  HeaderReader reader(problems, infos, meta);
  bool parsed = nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
  if (!parsed && !problems.any())
    problems.add("the header is not valid JSON");
  std::sort(infos.begin(), infos.end(),
            [](const TensorInfo &a, const TensorInfo &b) { return a.name < b.name; });
  for (size_t i = 1; i < infos.size(); ++i)
    if (infos[i].name == infos[i - 1].name)
      problems.add(
          format("tensor %s stands twice in the header", quoteName(infos[i].name).c_str()));
  // With records missing, holes would only repeat what is said already.
  if (!problems.any())
    isTruncated = checkLayout(infos, fileBytes - 8 - headerBytes, allowTruncated, problems);
  for (TensorInfo &t : infos)
    t.offset += 8 + headerBytes;
  return problems.take();
}

Expected<SafeTensorsFile> SafeTensorsFile::open(const std::string &path,
                                                SafeTensorsOptions options) {
  uint64_t limit = options.headersOnly ? 8 + kHeaderLimit : UINT64_MAX;
  Expected<MappedFile> map = MappedFile::open(path, limit);
  if (!map)
    return map.takeStatus();
  SafeTensorsFile file;
  file.filePath = path;
  if (Status status = file.parse(map->bytes, map->fileBytes, options.allowTruncated); !status)
    return status;
  if (!options.headersOnly) {
    file.owner = map->owner;
    file.bytes = map->bytes;
  }
  return file;
}

Expected<SafeTensorsFile> SafeTensorsFile::fromBytes(std::span<const uint8_t> bytes,
                                                     const std::string &name,
                                                     SafeTensorsOptions options) {
  SafeTensorsFile file;
  file.filePath = name;
  if (Status status = file.parse(bytes, bytes.size(), options.allowTruncated); !status)
    return status;
  if (!options.headersOnly)
    file.bytes = bytes;
  return file;
}

const TensorInfo *SafeTensorsFile::find(std::string_view name) const {
  auto it = std::lower_bound(infos.begin(), infos.end(), name,
                             [](const TensorInfo &t, std::string_view n) { return t.name < n; });
  return it != infos.end() && it->name == name ? &*it : nullptr;
}

std::span<const uint8_t> SafeTensorsFile::data(const TensorInfo &tensor) const {
  if (tensor.offset > bytes.size() || tensor.bytes > bytes.size() - tensor.offset)
    return {};
  return bytes.subspan(tensor.offset, tensor.bytes);
}

void SafeTensorsFile::release(const TensorInfo &tensor) const {
  if (owner)
    MappedFile::release(data(tensor));
}

std::string quoteName(std::string_view name) {
  constexpr size_t kShown = 160;
  std::string text = "'";
  for (char c : name.substr(0, kShown)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\'' || c == '\\')
      text += format("\\x%02x", static_cast<unsigned char>(c));
    else
      text += c;
  }
  return text + (name.size() > kShown ? "…'" : "'");
}

std::string shapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

} // namespace moira::rt
