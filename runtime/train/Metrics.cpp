//===- Metrics.cpp - files of numbers -------------------------------------===//
// JSON lines. See Metrics.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Metrics.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace moira::rt {
namespace {

Status cannotWrite(const std::string &path) {
  return Status(ErrorId::CannotWrite, path + ": " + std::strerror(errno));
}

/// The step of a line; nothing for what is no line of ours.
std::optional<uint64_t> stepOfLine(const std::string &line) {
  nlohmann::json value = nlohmann::json::parse(line, nullptr, false);
  if (!value.is_object() || !value.contains("step") || !value["step"].is_number_unsigned())
    return std::nullopt;
  return value["step"].get<uint64_t>();
}

} // namespace

std::string metricsLine(const StepMetrics &metrics) {
  std::string line = format("{\"step\":%llu", (unsigned long long)metrics.step);
  for (const auto &[name, value] : metrics.values)
    line += "," + nlohmann::json(name).dump() + ":" +
            (std::isfinite(value) ? format("%.9g", value) : "null");
  return line + "}";
}

Expected<JsonLines> JsonLines::open(const std::string &path, uint64_t keepUntil) {
  JsonLines lines;
  lines.path = path;
  off_t keep = 0;
  {
    std::ifstream old(path);
    // A last line without its end was being written when the run ended.
    for (std::string line; std::getline(old, line) && !old.eof();) {
      std::optional<uint64_t> step = stepOfLine(line);
      if (!step || *step > keepUntil)
        break;
      keep += static_cast<off_t>(line.size()) + 1;
    }
  }
  lines.file.reset(std::fopen(path.c_str(), "ab"));
  if (!lines.file || ftruncate(fileno(lines.file.get()), keep) != 0)
    return cannotWrite(path);
  return lines;
}

Status JsonLines::write(const StepMetrics &metrics) {
  std::string line = metricsLine(metrics) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file.get()) != line.size() ||
      std::fflush(file.get()) != 0)
    return cannotWrite(path);
  return {};
}

} // namespace moira::rt
