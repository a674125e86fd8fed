//===- Metrics.h - what training reports of every step ----------*- C++ -*-===//
// The numbers of a step, and the files that they go to: JSON lines and TensorBoard's event files.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_METRICS_H
#define MOIRA_RT_METRICS_H

#include "moira/rt/Status.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// Named numbers of one step, in the order in which they are written.
struct StepMetrics {
  uint64_t step = 0;
  std::vector<std::pair<std::string, double>> values;
};

/// One JSON object a line: {"step":3,"loss":5.25,…}. A number that is none becomes null.
std::string metricsLine(const StepMetrics &metrics);

/// A file that records are appended to, each wholly or not at all.
class RecordFile {
public:
  /// Opens or creates `path` and cuts it to `length` bytes if it is a file. CannotWrite.
  static Expected<RecordFile> open(const std::string &path, int64_t length);
  /// CannotWrite; the next record may succeed.
  Status append(std::string_view record);

private:
  std::string path;
  std::unique_ptr<std::FILE, int (*)(std::FILE *)> file{nullptr, std::fclose};
  int64_t length = 0;
  bool cuts = true;
};

/// A file of JSON lines, written through.
class JsonLines {
public:
  /// Opens or creates `path`. Lines of steps after `keepUntil`, from before a crash or a step that
  /// is taken again, are removed, and so is what is behind them. CannotWrite.
  static Expected<JsonLines> open(const std::string &path, uint64_t keepUntil);
  Status write(const StepMetrics &metrics) { return file.append(metricsLine(metrics) + "\n"); }

private:
  RecordFile file;
};

/// An event file as TensorBoard reads it: TFRecords (length, masked crc32c of it, bytes, masked
/// crc32c of them) of tensorflow.Event messages with scalar summaries. Formats:
/// tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, summary.proto.
class TensorBoard {
public:
  /// Creates DIR and a new event file in it. CannotWrite.
  static Expected<TensorBoard> open(const std::string &directory);
  Status write(const StepMetrics &metrics);

private:
  Status record(const std::string &event);
  RecordFile file;
};

} // namespace moira::rt

#endif // MOIRA_RT_METRICS_H
