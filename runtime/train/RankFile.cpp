//===- RankFile.cpp - one rank's file of a checkpoint ---------------------===//
// See RankFile.h.
//===----------------------------------------------------------------------===//
#include "RankFile.h"

#include "moira/rt/PlanFile.h"
#include "moira/rt/SafeTensors.h"

#include <cstring>
#include <nlohmann/json.hpp>

namespace moira::rt {
namespace {

TensorType fileType(fb::DType type) {
  switch (type) {
  case fb::DType::f32:
    return TensorType::f32;
  case fb::DType::bf16:
    return TensorType::bf16;
  case fb::DType::f16:
    return TensorType::f16;
  case fb::DType::f64:
    return TensorType::f64;
  case fb::DType::i32:
    return TensorType::i32;
  case fb::DType::i64:
    return TensorType::i64;
  case fb::DType::u8:
    return TensorType::u8;
  }
  return TensorType::u8;
}

} // namespace

Expected<std::unique_ptr<RankFile>> RankFile::copy(std::span<const StatePart> parts) {
  auto file = std::make_unique<RankFile>();
  std::vector<uint8_t> fetched; // of one part that lies on a device
  for (const StatePart &part : parts) {
    bool any = part.shard.owner;
    size_t elements = 1;
    for (size_t d = 0; d < part.shard.valid.size(); ++d) {
      any &= part.shard.valid[d] > 0;
      elements *= static_cast<size_t>(part.shard.local[d]);
    }
    if (!any)
      continue;
    if (!part.data) {
      fetched.resize(elements * bytesOf(part.type));
      if (Status status = part.read(fetched.data()); !status)
        return status;
    }
    file->add(part, part.data ? part.data : fetched.data());
  }
  return file;
}

void RankFile::add(const StatePart &part, const void *data) {
  const Shard &shard = part.shard;
  StoredTensor &tensor = list.tensors.emplace_back();
  tensor.name = part.name;
  tensor.type = part.type;
  tensor.shape = shard.global;
  bool cut = part.experts && !shard.valid.empty();
  for (int64_t e = 0, n = cut ? shard.valid[0] : 1; e < n; ++e) {
    StoredBox &box = tensor.boxes.emplace_back();
    box.start = shard.start;
    box.extent = shard.valid;
    rt::Box from = shard.inLocal();
    if (cut) {
      box.start[0] += e;
      box.extent[0] = 1;
      from.start[0] = e;
      from.extent[0] = 1;
    }
    int64_t elements = 1;
    for (int64_t d : box.extent)
      elements *= d;
    Box &copy = boxes.emplace_back();
    copy.tensor = list.tensors.size() - 1;
    copy.index = tensor.boxes.size() - 1;
    copy.bytes.resize(static_cast<size_t>(elements) * bytesOf(part.type));
    copyBox(rt::Box::all(box.extent), copy.bytes.data(), from, data, bytesOf(part.type));
  }
}

std::string RankFile::header() {
  std::string entries;
  uint64_t at = 0;
  for (const Box &box : boxes) {
    const StoredTensor &tensor = list.tensors[box.tensor];
    const StoredBox &stored = tensor.boxes[box.index];
    nlohmann::json entry = {{"dtype", nameOf(fileType(tensor.type))},
                            {"shape", stored.extent},
                            {"data_offsets", {at, at + box.bytes.size()}}};
    entries += (entries.empty() ? "" : ",") + nlohmann::json(boxText(tensor, stored)).dump() + ":" +
               entry.dump();
    at += box.bytes.size();
  }
  std::string json = "{" + entries + "}";
  json.resize((json.size() + 7) / 8 * 8, ' '); // data aligned to 8 bytes
  std::string text;
  for (int i = 0; i < 8; ++i)
    text += static_cast<char>(json.size() >> (8 * i));
  return text + json;
}

Status RankFile::write(const std::string &directory, const std::string &name, FileSystem &files) {
  std::string path = directory + "/" + name;
  std::string head = header();
  StoredFile &file = list.files.emplace_back();
  file.name = name;
  file.headerBytes = head.size();
  file.bytes = head.size();
  for (const Box &box : boxes)
    file.bytes += box.bytes.size();
  auto failed = [&](const char *doing, int error) {
    return Status(ErrorId::CannotWrite,
                  path + format(": %s failed (%s), the file needs %llu bytes", doing,
                                std::strerror(error), (unsigned long long)file.bytes));
  };
  FileSystem::File handle;
  if (int error = files.create(path, handle))
    return failed("creating it", error);
  uint64_t at = 0;
  int error = 0;
  auto append = [&](std::span<const uint8_t> bytes) {
    error = files.append(handle, bytes);
    at += bytes.size();
    return crc32c(bytes);
  };
  file.headerCrc = append({reinterpret_cast<const uint8_t *>(head.data()), head.size()});
  for (Box &box : boxes) {
    StoredBox &stored = list.tensors[box.tensor].boxes[box.index];
    stored.offset = at;
    for (size_t done = 0; done < box.bytes.size() && !error;) {
      size_t n = std::min<size_t>(box.bytes.size() - done, TrainingManifest::kChunkBytes);
      stored.chunks.push_back(append(std::span(box.bytes).subspan(done, n)));
      done += n;
    }
    std::vector<uint8_t>().swap(box.bytes); // the copy's memory goes as it is written
    if (error)
      break;
  }
  const char *doing = "writing";
  if (!error) {
    doing = "syncing";
    error = files.sync(handle);
  }
  int closed = files.close(handle);
  if (error || closed)
    return failed(error ? doing : "closing", error ? error : closed);
  return {};
}

} // namespace moira::rt
