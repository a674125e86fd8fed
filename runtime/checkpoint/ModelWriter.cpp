//===- ModelWriter.cpp - writing a model directory ------------------------===//
#include "ModelWriter.h"

#include "Checksums.h"
#include "Staging.h"
#include "moira/rt/Bf16.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::Status;
using rt::TensorType;

/// Elements that are converted at a time.
constexpr uint64_t kBlock = uint64_t(1) << 20;

Status cannotWrite(const std::string &path, const std::string &why) {
  return Status(ErrorId::CannotWrite, path + ": " + why);
}

template <typename T> void widenLoop(const uint8_t *from, float *to, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    to[i] = static_cast<float>(value);
  }
}

/// Exact.
void widen(TensorType type, const uint8_t *from, float *to, uint64_t count) {
  if (type == TensorType::bf16)
    widenLoop<rt::Bf16>(from, to, count);
  else if (type == TensorType::f16)
    widenLoop<_Float16>(from, to, count);
  else
    widenLoop<float>(from, to, count);
}

template <typename T> uint64_t narrowLoop(const float *from, uint8_t *to, uint64_t count) {
  uint64_t lost = 0;
  for (uint64_t i = 0; i < count; ++i) {
    T value = static_cast<T>(from[i]);
    lost += std::isfinite(from[i]) && !std::isfinite(static_cast<float>(value));
    std::memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
  return lost;
}

/// Rounds to nearest, ties to even; returns how many finite values have become infinite.
uint64_t narrow(TensorType type, const float *from, uint8_t *to, uint64_t count) {
  if (type == TensorType::bf16)
    return narrowLoop<rt::Bf16>(from, to, count);
  if (type == TensorType::f16)
    return narrowLoop<_Float16>(from, to, count);
  return narrowLoop<float>(from, to, count);
}

/// Streams one tensor's bytes to its place.
class TensorStream {
public:
  TensorStream(rt::SafeTensorsWriter &writer, size_t tensor, const Recipe &recipe)
      : writer(writer), tensor(tensor), recipe(recipe) {}

  Status run() {
    for (size_t i = 0; i < recipe.pieces.size(); ++i) {
      const Piece &piece = recipe.pieces[i];
      const Piece *other = recipe.others.empty() ? nullptr : &recipe.others[i];
      bool copies = !other && typeOf(piece) == recipe.spec.type;
      for (uint64_t done = 0; done < piece.elements;) {
        // Elements of less than a byte are only ever copied as whole tensors; the block is even.
        uint64_t count = std::min(kBlock, piece.elements - done);
        Status status = copies ? copy(piece, done, count) : compute(piece, other, done, count);
        if (!status)
          return status;
        done += count;
      }
    }
    if (lost)
      return Status(ErrorId::TensorDType,
                    rt::format("%s: %llu values are too large for %s; take BF16 or F32",
                               rt::quoteName(recipe.spec.name).c_str(),
                               static_cast<unsigned long long>(lost),
                               rt::nameOf(recipe.spec.type)));
    return {};
  }

private:
  rt::SafeTensorsWriter &writer;
  size_t tensor;
  const Recipe &recipe;
  uint64_t at = 0, lost = 0;
  std::vector<uint8_t> bytes;
  std::vector<float> values, second;

  static TensorType typeOf(const Piece &piece) {
    return piece.source->tensors()[piece.tensor].type;
  }

  Status load(const Piece &piece, uint64_t done, uint64_t count) {
    TensorType type = typeOf(piece);
    bytes.resize(bytesOf(type, count));
    return piece.source->read(piece.tensor, bytesOf(type, piece.first + done), bytes);
  }

  Status store() {
    Status status = writer.write(tensor, at, bytes);
    at += bytes.size();
    return status;
  }

  Status copy(const Piece &piece, uint64_t done, uint64_t count) {
    if (Status status = load(piece, done, count); !status)
      return status;
    return store();
  }

  Status compute(const Piece &piece, const Piece *other, uint64_t done, uint64_t count) {
    values.resize(count);
    if (Status status = load(piece, done, count); !status)
      return status;
    widen(typeOf(piece), bytes.data(), values.data(), count);
    if (other) {
      second.resize(count);
      if (Status status = load(*other, done, count); !status)
        return status;
      widen(typeOf(*other), bytes.data(), second.data(), count);
      for (uint64_t i = 0; i < count; ++i)
        values[i] = static_cast<float>((double(values[i]) + double(second[i])) / 2);
    }
    bytes.resize(bytesOf(recipe.spec.type, count));
    lost += narrow(recipe.spec.type, values.data(), bytes.data(), count);
    return store();
  }
};

/// Which tensors go into which file.
std::vector<std::vector<const Recipe *>> shardsOf(const ModelToWrite &model) {
  std::vector<std::vector<const Recipe *>> shards(1);
  uint64_t bytes = 0;
  for (const Recipe &recipe : model.tensors) {
    uint64_t size = bytesOf(recipe.spec.type, elementsOf(recipe.spec));
    if (!shards.back().empty() && bytes + size > model.shardBytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(&recipe);
    bytes += size;
  }
  return shards;
}

Status writeShard(const std::string &path, const std::vector<const Recipe *> &recipes) {
  std::vector<rt::TensorSpec> specs;
  for (const Recipe *recipe : recipes)
    specs.push_back(recipe->spec);
  // Other readers of such files want to know whose conventions the tensors follow.
  rt::Expected<rt::SafeTensorsWriter> writer = rt::SafeTensorsWriter::create(
      path, specs, static_cast<uint64_t>(getpid()), {{"format", "pt"}});
  if (!writer)
    return writer.takeStatus();
  for (size_t i = 0; i < recipes.size(); ++i)
    if (Status status = TensorStream(*writer, i, *recipes[i]).run(); !status)
      return status;
  return writer->commit();
}

Status copyFile(const std::string &from, const std::string &to) {
  std::error_code error;
  std::filesystem::copy_file(from, to, error);
  if (error)
    return cannotWrite(to, "copying " + from + ": " + error.message());
  int fd = ::open(to.c_str(), O_RDONLY | O_CLOEXEC);
  bool synced = fd >= 0 && fsync(fd) == 0;
  int why = errno;
  if (fd >= 0)
    ::close(fd);
  return synced ? Status() : cannotWrite(to, std::string("syncing: ") + std::strerror(why));
}

} // namespace

Piece whole(const ModelSource &source, size_t tensor) {
  return {&source, tensor, 0, elementsOf(source.tensors()[tensor])};
}

Recipe copyOf(const ModelSource &source, size_t tensor) {
  return {source.tensors()[tensor], {whole(source, tensor)}, {}};
}

bool isFloat(TensorType type) {
  return type == TensorType::f32 || type == TensorType::bf16 || type == TensorType::f16;
}

Status writeFile(const std::string &path, std::string_view text) {
  int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0)
    return cannotWrite(path, std::strerror(errno));
  Status status;
  for (size_t done = 0; done < text.size() && status;) {
    ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      status = cannotWrite(path, std::strerror(n == 0 ? ENOSPC : errno));
    else
      done += static_cast<size_t>(n);
  }
  if (status && fsync(fd) != 0)
    status = cannotWrite(path, std::string("syncing: ") + std::strerror(errno));
  ::close(fd);
  return status;
}

Status writeModel(const std::string &directory, const ModelToWrite &model) {
  Staging staging(directory);
  if (Status status = staging.make(); !status)
    return status;
  const std::string &path = staging.path();

  std::vector<std::vector<const Recipe *>> shards = shardsOf(model);
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  uint64_t bytes = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    std::string name = shards.size() == 1
                           ? "model.safetensors"
                           : rt::format("model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    if (Status status = writeShard(path + "/" + name, shards[i]); !status)
      return status;
    for (const Recipe *recipe : shards[i]) {
      map[recipe->spec.name] = name;
      bytes += bytesOf(recipe->spec.type, elementsOf(recipe->spec));
    }
  }
  if (shards.size() > 1) {
    nlohmann::ordered_json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", map}};
    if (Status status = writeFile(path + "/model.safetensors.index.json", index.dump(2) + "\n");
        !status)
      return status;
  }
  if (Status status = writeFile(path + "/config.json", model.config); !status)
    return status;
  for (const std::string &from : model.companions)
    if (Status status =
            copyFile(from, path + "/" + std::filesystem::path(from).filename().string());
        !status)
      return status;
  if (model.checksums)
    if (Status status = writeChecksums(path); !status)
      return status;
  return staging.publish();
}

} // namespace moira::ckpt
