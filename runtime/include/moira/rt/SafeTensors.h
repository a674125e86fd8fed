//===- SafeTensors.h - reading safetensors files ----------------*- C++ -*-===//
// One file, mapped read-only and checked, with every tensor's type, shape and place. Files are
// hostile: every function is total, and memory stays within a small multiple of the header. The
// compiler's importer uses this with headersOnly. Directories of shards are Checkpoint.h's, writing
// is SafeTensorsWriter.h's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SAFETENSORS_H
#define MOIRA_RT_SAFETENSORS_H

#include "moira/rt/Status.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// Element types that the format knows, in the order of the table in SafeTensors.cpp.
enum class TensorType : uint8_t {
  boolean,
  u8,
  i8,
  f8e5m2,
  f8e4m3,
  f8e8m0,
  f6e2m3,
  f6e3m2,
  f4,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  i64,
  u64,
  f64,
  c64
};
/// Bits of one element (4 to 64).
int bitsOf(TensorType type);
/// The name in the file: "F32", "BF16", …
const char *nameOf(TensorType type);

/// One tensor of a file. Checked: bytes = product(shape) * element size, and [offset, offset +
/// bytes) lies in the file (unless the file was opened with allowTruncated).
struct TensorInfo {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<int64_t> shape;
  uint64_t offset = 0; // from the start of the file
  uint64_t bytes = 0;
  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape)
      n *= d;
    return n;
  }
};

/// Metadata key of SafeTensorsOptions users and of the format.
inline constexpr const char *kMetadataKey = "__metadata__";

struct SafeTensorsOptions {
  /// Read the header only; data() is then empty.
  bool headersOnly = false;
  /// Accept a file whose data ends early (truncated() says so) instead of failing.
  bool allowTruncated = false;
};

/// A checked safetensors file. Copies share the map. Thread-safe once open.
class SafeTensorsFile {
public:
  /// FileNotFound, or BadSafetensors with every problem found (at most 20 are listed).
  static Expected<SafeTensorsFile> open(const std::string &path, SafeTensorsOptions options = {});
  /// The same on bytes in memory, which must outlive the result; `name` stands in messages.
  static Expected<SafeTensorsFile> fromBytes(std::span<const uint8_t> bytes,
                                             const std::string &name,
                                             SafeTensorsOptions options = {});

  const std::string &path() const { return filePath; }
  /// Sorted by name.
  const std::vector<TensorInfo> &tensors() const { return infos; }
  /// The tensor, or null.
  const TensorInfo *find(std::string_view name) const;
  /// Bytes of a tensor of this file; empty with headersOnly or if the data ends before it does.
  std::span<const uint8_t> data(const TensorInfo &tensor) const;
  /// Lets go of the memory that reading a tensor of an open()ed file took; data() reads it again.
  void release(const TensorInfo &tensor) const;
  /// "__metadata__" of the header.
  const std::map<std::string, std::string> &metadata() const { return meta; }
  /// The data ends before the header says (only with allowTruncated).
  bool truncated() const { return isTruncated; }

private:
  Status parse(std::span<const uint8_t> header, uint64_t fileBytes, bool allowTruncated);

  std::string filePath;
  std::shared_ptr<const void> owner; // the map
  std::span<const uint8_t> bytes;    // the whole file, or empty
  std::vector<TensorInfo> infos;
  std::map<std::string, std::string> meta;
  bool isTruncated = false;
};

/// A name from a file as messages show it: in quotes, control characters escaped, at most 160
/// bytes.
std::string quoteName(std::string_view name);
/// "[2, 24, 64]"
std::string shapeText(std::span<const int64_t> shape);

} // namespace moira::rt

#endif // MOIRA_RT_SAFETENSORS_H
