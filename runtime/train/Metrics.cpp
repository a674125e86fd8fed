//===- Metrics.cpp - files of numbers -------------------------------------===//
// JSON lines. See Metrics.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Metrics.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

namespace moira::rt {
namespace {

Status cannotWrite(const std::string &path) {
  return Status(ErrorId::CannotWrite, path + ": " + std::strerror(errno));
}

/// Pipes, terminals and devices have no old lines, and nothing can be cut off them. What does not
/// exist will be a file.
bool holdsLines(const std::string &path) {
  struct stat about;
  return stat(path.c_str(), &about) != 0 || S_ISREG(about.st_mode);
}

/// The step of a line; nothing for what is no line of ours.
std::optional<uint64_t> stepOfLine(const std::string &line) {
  nlohmann::json value = nlohmann::json::parse(line, nullptr, false);
  if (!value.is_object() || !value.contains("step") || !value["step"].is_number_unsigned())
    return std::nullopt;
  return value["step"].get<uint64_t>();
}

/// JSON of a number. One that is an f32, as losses and learning rates are, has no more digits than
/// tell it from other f32: 0.0001, not 9.99999975e-05.
std::string numberText(double value) {
  if (!std::isfinite(value))
    return "null";
  bool fits = std::fabs(value) <= std::numeric_limits<float>::max();
  float narrow = fits ? static_cast<float>(value) : 0;
  if (!fits || narrow != value)
    return format("%.9g", value);
  char text[32];
  auto [end, error] = std::to_chars(text, text + sizeof text, narrow, std::chars_format::general);
  return std::string(text, end);
}

} // namespace

std::string metricsLine(const StepMetrics &metrics) {
  std::string line = format("{\"step\":%llu", (unsigned long long)metrics.step);
  for (const auto &[name, value] : metrics.values)
    line += "," + nlohmann::json(name).dump() + ":" + numberText(value);
  return line + "}";
}

Expected<RecordFile> RecordFile::open(const std::string &path, int64_t length) {
  RecordFile records;
  records.path = path;
  records.length = length;
  records.cuts = holdsLines(path);
  records.file.reset(std::fopen(path.c_str(), "ab"));
  if (!records.file || (records.cuts && ftruncate(fileno(records.file.get()), length) != 0) ||
      std::setvbuf(records.file.get(), nullptr, _IONBF, 0) != 0)
    return cannotWrite(path);
  return records;
}

Status RecordFile::append(std::string_view record) {
  if (std::fwrite(record.data(), 1, record.size(), file.get()) == record.size()) {
    length += static_cast<int64_t>(record.size());
    return {};
  }
  Status status = cannotWrite(path);
  std::clearerr(file.get());
  [[maybe_unused]] int cut = cuts ? ftruncate(fileno(file.get()), length) : 0;
  return status;
}

Expected<JsonLines> JsonLines::open(const std::string &path, uint64_t keepUntil) {
  off_t keep = 0;
  if (holdsLines(path)) {
    std::ifstream old(path);
    // A last line without its end was being written when the run ended.
    for (std::string line; std::getline(old, line) && !old.eof();) {
      std::optional<uint64_t> step = stepOfLine(line);
      if (!step || *step > keepUntil)
        break;
      keep += static_cast<off_t>(line.size()) + 1;
    }
  }
  Expected<RecordFile> file = RecordFile::open(path, keep);
  if (!file)
    return file.takeStatus();
  JsonLines lines;
  lines.file = std::move(*file);
  return lines;
}

} // namespace moira::rt
