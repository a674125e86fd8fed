//===- SafeTensorsWriter.cpp - writing safetensors files ------------------===//
// See SafeTensorsWriter.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/SafeTensorsWriter.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace moira::rt {
namespace {

std::string directoryOf(const std::string &path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

Status cannotWrite(const std::string &path, const std::string &why) {
  return Status(ErrorId::CannotWrite, path + ": " + why);
}

} // namespace

Status checkWritable(const std::string &path) {
  std::string directory = directoryOf(path);
  struct stat info;
  if (stat(directory.c_str(), &info) != 0)
    return cannotWrite(path, "the directory " + directory + ": " + std::strerror(errno));
  if (!S_ISDIR(info.st_mode))
    return cannotWrite(path, directory + " is not a directory");
  // Renaming over a device such as /dev/null would replace it.
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
    return cannotWrite(path, S_ISDIR(info.st_mode) ? "is a directory" : "is not a regular file");
  if (access(directory.c_str(), W_OK) != 0)
    return cannotWrite(path, "the directory " + directory + ": " + std::strerror(errno));
  return {};
}

SafeTensorsWriter::SafeTensorsWriter(const std::string &path, const std::vector<TensorSpec> &specs,
                                     uint64_t tag, const TensorMetadata &metadata)
    : path(path),
      temporary(format("%s.%llx.tmp", path.c_str(), static_cast<unsigned long long>(tag))) {
  std::string entries;
  if (!metadata.empty())
    entries = nlohmann::json(kMetadataKey).dump() + ":" + nlohmann::json(metadata).dump();
  uint64_t at = 0;
  for (const TensorSpec &spec : specs) {
    uint64_t elements = 1;
    for (int64_t d : spec.shape)
      elements *= static_cast<uint64_t>(d);
    uint64_t bytes = elements * bitsOf(spec.type) / 8;
    nlohmann::json entry = {
        {"dtype", nameOf(spec.type)}, {"shape", spec.shape}, {"data_offsets", {at, at + bytes}}};
    entries += (entries.empty() ? "" : ",") + nlohmann::json(spec.name).dump() + ":" + entry.dump();
    offsets.push_back(at);
    at += bytes;
  }
  std::string json = "{" + entries + "}";
  json.resize((json.size() + 7) / 8 * 8, ' '); // data aligned to 8 bytes
  for (int i = 0; i < 8; ++i)
    header += static_cast<char>(json.size() >> (8 * i));
  header += json;
  for (uint64_t &offset : offsets)
    offset += header.size();
  fileBytes = header.size() + at;
}

SafeTensorsWriter::SafeTensorsWriter(SafeTensorsWriter &&other) noexcept
    : path(std::move(other.path)), temporary(std::move(other.temporary)),
      header(std::move(other.header)), offsets(std::move(other.offsets)),
      fileBytes(other.fileBytes), fd(std::exchange(other.fd, -1)),
      created(std::exchange(other.created, false)) {}

SafeTensorsWriter::~SafeTensorsWriter() {
  if (fd >= 0)
    close(fd);
  if (created)
    unlink(temporary.c_str());
}

Status SafeTensorsWriter::failed(const char *doing, int error) const {
  return cannotWrite(path,
                     format("%s failed (%s), the file needs %llu bytes", doing,
                            std::strerror(error), static_cast<unsigned long long>(fileBytes)));
}

Expected<SafeTensorsWriter> SafeTensorsWriter::create(const std::string &path,
                                                      const std::vector<TensorSpec> &specs,
                                                      uint64_t tag,
                                                      const TensorMetadata &metadata) {
  if (Status status = checkWritable(path); !status)
    return status;
  SafeTensorsWriter writer(path, specs, tag, metadata);
  writer.fd = ::open(writer.temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (writer.fd < 0)
    return writer.failed("creating its temporary file", errno);
  writer.created = true;
  if (ftruncate(writer.fd, static_cast<off_t>(writer.fileBytes)) != 0)
    return writer.failed("reserving its space", errno);
  for (size_t done = 0; done < writer.header.size();) {
    ssize_t n = pwrite(writer.fd, writer.header.data() + done, writer.header.size() - done,
                       static_cast<off_t>(done));
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return writer.failed("writing", n == 0 ? ENOSPC : errno);
    done += static_cast<size_t>(n);
  }
  return writer;
}

Expected<SafeTensorsWriter> SafeTensorsWriter::join(const std::string &path,
                                                    const std::vector<TensorSpec> &specs,
                                                    uint64_t tag, const TensorMetadata &metadata) {
  SafeTensorsWriter writer(path, specs, tag, metadata);
  writer.fd = ::open(writer.temporary.c_str(), O_WRONLY | O_CLOEXEC);
  if (writer.fd < 0)
    return writer.failed("opening the file that rank 0 has created (is the folder shared?)", errno);
  return writer;
}

Status SafeTensorsWriter::write(size_t tensor, uint64_t offset, std::span<const uint8_t> bytes) {
  for (size_t done = 0; done < bytes.size();) {
    ssize_t n = pwrite(fd, bytes.data() + done, bytes.size() - done,
                       static_cast<off_t>(offsets[tensor] + offset + done));
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return failed("writing", n == 0 ? ENOSPC : errno);
    done += static_cast<size_t>(n);
  }
  return {};
}

Status SafeTensorsWriter::sync() {
  if (fsync(fd) != 0)
    return failed("syncing", errno);
  return {};
}

Status SafeTensorsWriter::commit() {
  if (Status status = sync(); !status)
    return status;
  if (rename(temporary.c_str(), path.c_str()) != 0)
    return failed("renaming the finished file", errno);
  created = false;
  int directory = ::open(directoryOf(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    // Some file systems refuse to sync directories; the file itself is safe by now.
    (void)fsync(directory);
    close(directory);
  }
  return {};
}

Status writeSafeTensors(const std::string &path, const std::vector<TensorSpec> &specs,
                        const std::vector<std::span<const uint8_t>> &data) {
  Expected<SafeTensorsWriter> writer =
      SafeTensorsWriter::create(path, specs, static_cast<uint64_t>(getpid()));
  if (!writer)
    return writer.takeStatus();
  for (size_t i = 0; i < data.size(); ++i)
    if (Status status = writer->write(i, 0, data[i]); !status)
      return status;
  return writer->commit();
}

} // namespace moira::rt
