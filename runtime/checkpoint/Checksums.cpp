//===- Checksums.cpp - a checkpoint against its checksums -----------------===//
// The side file is lines of JSON, each small, so that reading it takes no memory to speak of.
//===----------------------------------------------------------------------===//
#include "Checksums.h"

#include "Config.h"
#include "ModelWriter.h"
#include "Staging.h"
#include "moira/rt/PlanFile.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <unistd.h>

namespace moira::ckpt {
namespace {

using nlohmann::json;
using rt::ErrorId;
using rt::Status;

constexpr size_t kLineLimit = size_t(2) << 20;
constexpr uint64_t kPart = uint64_t(8) << 20;

std::string hex(uint32_t sum) { return rt::format("%08x", sum); }

std::string baseName(const std::string &path) {
  return std::filesystem::path(path).filename().string();
}

/// The checkpoint's files, each once, sorted by name.
std::vector<const rt::SafeTensorsFile *> filesOf(const rt::Checkpoint &checkpoint) {
  std::vector<const rt::SafeTensorsFile *> files;
  for (const rt::Checkpoint::Entry &entry : checkpoint.tensors())
    files.push_back(entry.file);
  auto byPath = [](const rt::SafeTensorsFile *a, const rt::SafeTensorsFile *b) {
    return a->path() < b->path();
  };
  std::sort(files.begin(), files.end(), byPath);
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

/// What stands before a file's data: length and header.
rt::Expected<uint32_t> headerSum(const std::string &path, uint64_t &fileBytes) {
  std::ifstream in(path, std::ios::binary);
  uint8_t length[8];
  if (!in.read(reinterpret_cast<char *>(length), 8))
    return Status(ErrorId::FileNotFound, "cannot read " + path);
  uint64_t left = 0;
  for (int i = 7; i >= 0; --i)
    left = left << 8 | length[i];
  uint32_t sum = rt::crc32c(length);
  std::vector<uint8_t> part;
  while (left > 0) {
    part.resize(std::min(left, kPart));
    if (!in.read(reinterpret_cast<char *>(part.data()), static_cast<std::streamsize>(part.size())))
      return Status(ErrorId::FileNotFound, "cannot read the header of " + path);
    sum = rt::crc32c(part, sum);
    left -= part.size();
  }
  std::error_code error;
  fileBytes = std::filesystem::file_size(path, error);
  return sum;
}

rt::Expected<json> fileRecord(const rt::SafeTensorsFile &file) {
  uint64_t bytes = 0;
  rt::Expected<uint32_t> sum = headerSum(file.path(), bytes);
  if (!sum)
    return sum.takeStatus();
  return json{{"file", baseName(file.path())}, {"bytes", bytes}, {"header", hex(*sum)}};
}

json tensorRecord(const rt::Checkpoint &checkpoint, const rt::Checkpoint::Entry &entry) {
  uint32_t sum = rt::crc32c(checkpoint.data(entry));
  checkpoint.release(entry);
  return json{{"tensor", entry.info->name},
              {"dtype", rt::nameOf(entry.info->type)},
              {"shape", entry.info->shape},
              {"crc32c", hex(sum)}};
}

/// Calls `visit` with every line, parsed. BadChecksums for the first that is none.
template <typename F> Status forEachRecord(const std::string &path, F &&visit) {
  // A pipe that nobody writes to would be waited for.
  if (std::error_code error; !std::filesystem::is_regular_file(path, error))
    return Status(ErrorId::FileNotFound, "cannot open " + path + ": not a regular file");
  std::ifstream in(path, std::ios::binary);
  if (!in)
    return Status(ErrorId::FileNotFound, "cannot open " + path + ": " + std::strerror(errno));
  std::string line;
  size_t number = 0;
  auto fail = [&](const char *what) {
    return Status(ErrorId::ChecksumMismatch,
                  rt::format("%s: line %zu %s; write the file again with moe-ckpt verify "
                             "--write-checksums once the weights are known to be right",
                             path.c_str(), number, what));
  };
  for (int c = in.get();; c = in.get()) {
    bool ends = c == std::char_traits<char>::eof();
    if (!ends && c != '\n') {
      line += static_cast<char>(c);
      if (line.size() > kLineLimit) {
        ++number;
        return fail("is longer than any record");
      }
      continue;
    }
    if (ends && line.empty())
      return {};
    ++number;
    // A record is flat, so deep nesting is refused before it is parsed.
    if (std::ranges::count(line, '[') + std::ranges::count(line, '{') > 1'000)
      return fail("is no record");
    json record = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object() || !visit(record))
      return fail("is no record");
    line.clear();
    if (ends)
      return {};
  }
}

} // namespace

Status writeChecksums(const std::string &directory) {
  rt::Expected<rt::Checkpoint> checkpoint = rt::Checkpoint::open(directory);
  if (!checkpoint)
    return checkpoint.takeStatus();
  std::string text;
  for (const rt::SafeTensorsFile *file : filesOf(*checkpoint)) {
    rt::Expected<json> record = fileRecord(*file);
    if (!record)
      return record.takeStatus();
    text += record->dump() + "\n";
  }
  for (const rt::Checkpoint::Entry &entry : checkpoint->tensors())
    text += tensorRecord(*checkpoint, entry).dump() + "\n";
  std::string path = directory + "/" + kChecksumFile;
  std::string temporary = rt::format("%s.%d.tmp", path.c_str(), getpid());
  Status status = writeFile(temporary, text);
  if (status && rename(temporary.c_str(), path.c_str()) != 0)
    status = Status(ErrorId::CannotWrite, path + ": " + std::strerror(errno));
  if (!status) {
    (void)unlink(temporary.c_str());
    return status;
  }
  return syncDirectory(directory);
}

rt::Expected<std::vector<std::optional<uint32_t>>> readSums(const rt::Checkpoint &checkpoint) {
  std::vector<std::optional<uint32_t>> sums(checkpoint.tensors().size());
  std::string side = checkpoint.path() + "/" + kChecksumFile;
  if (std::error_code error; !std::filesystem::exists(side, error))
    return sums;
  auto take = [&](const json &record) {
    auto name = record.find("tensor"), sum = record.find("crc32c");
    if (name == record.end())
      return record.contains("file");
    if (!name->is_string() || sum == record.end() || !sum->is_string())
      return false;
    const auto &digits = sum->get_ref<const std::string &>();
    uint32_t value = 0;
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || hex(value) != digits)
      return false;
    if (const rt::Checkpoint::Entry *entry = checkpoint.find(name->get<std::string>()))
      sums[static_cast<size_t>(entry - checkpoint.tensors().data())] = value;
    return true;
  };
  if (Status status = forEachRecord(side, take); !status)
    return status;
  return sums;
}

rt::Expected<Verified> verifyCheckpoint(const std::string &directory) {
  rt::Expected<rt::Checkpoint> checkpoint = rt::Checkpoint::open(directory);
  if (!checkpoint)
    return checkpoint.takeStatus();
  Verified result;
  std::map<std::string, const rt::SafeTensorsFile *> files;
  for (const rt::SafeTensorsFile *file : filesOf(*checkpoint))
    files[baseName(file->path())] = file;
  result.files = files.size();
  result.tensors = checkpoint->tensors().size();
  for (const rt::Checkpoint::Entry &entry : checkpoint->tensors())
    result.bytes += entry.info->bytes;

  std::string side = directory + "/" + kChecksumFile;
  std::error_code error;
  if (!std::filesystem::exists(side, error))
    return result;
  result.checksums = true;
  Status problems;
  auto differ = [&](const std::string &what) { problems.add(ErrorId::ChecksumMismatch, what); };
  std::set<std::string> seen;
  // Compares a record with what is there; false if it is no record.
  auto compare = [&](const json &record) {
    for (const char *kind : {"file", "tensor"}) {
      auto it = record.find(kind);
      if (it == record.end() || !it->is_string())
        continue;
      std::string name = it->get<std::string>();
      seen.insert(kind + (" " + name));
      json now;
      if (auto file = files.find(name); *kind == 'f' && file != files.end()) {
        rt::Expected<json> made = fileRecord(*file->second);
        now = made ? *made : json();
      } else if (const rt::Checkpoint::Entry *entry = checkpoint->find(name);
                 *kind == 't' && entry) {
        now = tensorRecord(*checkpoint, *entry);
      }
      if (now.is_null())
        differ(directory + ": " + kind + " " + rt::quoteName(name) + " is gone");
      else if (now != record)
        differ(directory + ": " + kind + " " + rt::quoteName(name) + " is " + now.dump() +
               ", its record says " + record.dump().substr(0, 400));
      return true;
    }
    return false;
  };
  problems.append(forEachRecord(side, compare));
  for (const auto &[name, file] : files)
    if (!seen.count("file " + name))
      differ(directory + ": file " + rt::quoteName(name) + " has no record");
  for (const rt::Checkpoint::Entry &entry : checkpoint->tensors())
    if (!seen.count("tensor " + entry.info->name))
      differ(directory + ": tensor " + rt::quoteName(entry.info->name) + " has no record");
  if (!problems)
    return problems;
  return result;
}

} // namespace moira::ckpt
