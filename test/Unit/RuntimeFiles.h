//===- RuntimeFiles.h - files for the runtime's tests -----------*- C++ -*-===//
// A temporary directory and safetensors files written byte by byte, independent of the writer under
// test.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_RUNTIMEFILES_H
#define MOIRA_TEST_UNIT_RUNTIMEFILES_H

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdlib.h>
#include <string>
#include <vector>

namespace moira::test {

/// A directory that is removed at the end.
class TempDir {
public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "moira-test-XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string operator/(const std::string &name) const { return path + "/" + name; }
  const std::string &str() const { return path; }

private:
  std::string path;
};

inline void writeFile(const std::string &path, const std::string &bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// A safetensors file from its header's text and its data.
inline std::string safetensorsBytes(const std::string &header, const std::string &data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i)
    bytes += static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i));
  return bytes + header + data;
}

struct TestTensor {
  std::string name, type;
  std::vector<int64_t> shape;
  std::string bytes;
};

template <typename T>
TestTensor testTensor(const std::string &name, const std::string &type,
                      const std::vector<int64_t> &shape, const std::vector<T> &values) {
  return {name, type, shape,
          std::string(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(T))};
}

inline std::string safetensorsBytes(const std::vector<TestTensor> &tensors) {
  std::string header = "{", data;
  for (const TestTensor &t : tensors) {
    std::string shape;
    for (int64_t d : t.shape)
      shape += (shape.empty() ? "" : ",") + std::to_string(d);
    header += (header.size() > 1 ? ",\"" : "\"") + t.name + "\":{\"dtype\":\"" + t.type +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(data.size()) +
              "," + std::to_string(data.size() + t.bytes.size()) + "]}";
    data += t.bytes;
  }
  return safetensorsBytes(header + "}", data);
}

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_RUNTIMEFILES_H
