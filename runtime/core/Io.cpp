//===- Io.cpp - a program's inputs and outputs ----------------------------===//
// See Io.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Io.h"

#include "moira/rt/Agree.h"
#include "moira/rt/Weights.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <unistd.h>

namespace moira::rt {
namespace {

bool isInteger(fb::DType type) { return type == fb::DType::i32 || type == fb::DType::i64; }

std::vector<int64_t> toVector(const flatbuffers::Vector<int64_t> &v) {
  return {v.begin(), v.end()};
}

int64_t product(std::span<const int64_t> shape) {
  int64_t n = 1;
  for (int64_t d : shape)
    n *= d;
  return n;
}

/// Values out of the plan's range, or of the type that the plan computes with.
void checkRange(const fb::Input &input, const HostTensor &source, const std::string &where,
                Status &problems) {
  int64_t low = input.minimum(), high = input.maximum();
  bool ranged = low != 0 || high != 0;
  if (!ranged && input.dtype() == fb::DType::i32) {
    low = std::numeric_limits<int32_t>::min();
    high = std::numeric_limits<int32_t>::max();
    ranged = true;
  }
  if (!ranged)
    return;
  int64_t wrong = 0, first = 0;
  for (int64_t i = 0, n = product(source.shape); i < n; ++i) {
    int64_t value = integerAt(source.data, source.type, i);
    if (value < low || value > high)
      if (wrong++ == 0)
        first = i;
  }
  if (wrong)
    problems.add(ErrorId::BadInput,
                 format("%s: %s%s = %lld is out of range %lld..%lld%s", where.c_str(),
                        input.name()->c_str(), indexText(source.shape, first).c_str(),
                        static_cast<long long>(integerAt(source.data, source.type, first)),
                        static_cast<long long>(low), static_cast<long long>(high),
                        wrong == 1 ? ""
                                   : format(", and so are %lld other values",
                                            static_cast<long long>(wrong - 1))
                                         .c_str()));
}

bool converts(fb::DType from, fb::DType to) {
  return isInteger(to) ? isInteger(from) : isFloat(to) ? isFloat(from) : from == to;
}

const char *accepted(fb::DType type) {
  return isInteger(type) ? "I32 or I64" : isFloat(type) ? "F32, BF16, F16 or F64" : "U8";
}

} // namespace

int64_t integerAt(const void *data, fb::DType type, int64_t index) {
  if (type == fb::DType::i32) {
    int32_t v;
    std::memcpy(&v, static_cast<const char *>(data) + index * 4, 4);
    return v;
  }
  int64_t v;
  std::memcpy(&v, static_cast<const char *>(data) + index * 8, 8);
  return v;
}

std::string indexText(std::span<const int64_t> shape, int64_t flat) {
  std::vector<int64_t> index(shape.size());
  for (size_t d = shape.size(); d-- > 0; flat /= shape[d])
    index[d] = flat % shape[d];
  return shapeText(index);
}

/// What was found for one input: nothing, a tensor, or one whose type plans do not have.
struct InputSet::Found {
  bool present = false;
  const char *typeName = "";
  std::optional<HostTensor> tensor;
};

std::vector<int64_t> InputSet::shapeOf(const fb::Input &input) const {
  std::vector<int64_t> shape = toVector(*input.shape());
  if (shape.size() > 1)
    shape[0] *= parts;
  return shape;
}

Status InputSet::check(const std::string &origin,
                       const std::function<Found(const fb::Input &)> &find) {
  Status problems;
  for (const fb::Input *input : *program->inputs()) {
    sources.emplace_back();
    std::vector<int64_t> shape = shapeOf(*input);
    Found found = find(*input);
    if (!found.present) {
      if (input->optional())
        continue;
      std::string there;
      for (size_t j = 0; j < unused.size() && j < 10; ++j)
        there += (j ? ", " : "; what it has is not taken by the plan: ") + quoteName(unused[j]);
      problems.add(ErrorId::BadInput,
                   format("%s: tensor %s %s is missing%s", origin.c_str(), input->name()->c_str(),
                          shapeText(shape).c_str(), there.c_str()));
      continue;
    }
    if (!found.tensor || !converts(found.tensor->type, input->dtype())) {
      problems.add(ErrorId::BadInput,
                   format("%s: %s is %s, the plan takes %s", origin.c_str(), input->name()->c_str(),
                          found.typeName, accepted(input->dtype())));
      continue;
    }
    if (found.tensor->shape != shape) {
      problems.add(ErrorId::BadInput,
                   format("%s: %s has shape %s, the plan was compiled for %s", origin.c_str(),
                          input->name()->c_str(), shapeText(found.tensor->shape).c_str(),
                          shapeText(shape).c_str()));
      continue;
    }
    if (isInteger(input->dtype()))
      checkRange(*input, *found.tensor, origin, problems);
    sources.back() = std::move(found.tensor);
  }
  return problems;
}

Expected<InputSet> InputSet::open(const std::string &path, const fb::Program &program,
                                  int64_t parts) {
  Expected<SafeTensorsFile> file = SafeTensorsFile::open(path);
  if (!file)
    return file.takeStatus();
  InputSet set;
  set.program = &program;
  set.parts = parts;
  for (const TensorInfo &tensor : file->tensors()) {
    bool taken = std::any_of(
        program.inputs()->begin(), program.inputs()->end(),
        [&](const fb::Input *input) { return input->name()->string_view() == tensor.name; });
    if (!taken)
      set.unused.push_back(tensor.name);
  }
  Status status = set.check(path, [&](const fb::Input &input) {
    Found found;
    if (const TensorInfo *info = file->find(input.name()->string_view())) {
      found.present = true;
      found.typeName = nameOf(info->type);
      if (std::optional<fb::DType> type = planType(info->type))
        found.tensor = HostTensor{*type, info->shape, file->data(*info).data()};
    }
    return found;
  });
  if (!status)
    return status;
  set.file = std::move(*file);
  return set;
}

Expected<InputSet> InputSet::fromMemory(const std::map<std::string, HostTensor> &tensors,
                                        const fb::Program &program, int64_t parts) {
  InputSet set;
  set.program = &program;
  set.parts = parts;
  size_t taken = 0;
  Status status = set.check("inputs", [&](const fb::Input &input) {
    Found found;
    if (auto it = tensors.find(input.name()->str()); it != tensors.end()) {
      ++taken;
      found = {true, nameOf(it->second.type), it->second};
    }
    return found;
  });
  if (taken != tensors.size())
    status.add(ErrorId::BadInput, format("inputs: the plan does not take %zu of the %zu tensors",
                                         tensors.size() - taken, tensors.size()));
  if (!status)
    return status;
  return set;
}

bool InputSet::give(std::string_view name, const void *data) {
  for (size_t i = 0; i < sources.size(); ++i) {
    const fb::Input &input = *program->inputs()->Get(static_cast<unsigned>(i));
    if (input.name()->string_view() != name)
      continue;
    sources[i] = HostTensor{input.dtype(), shapeOf(input), data};
    return true;
  }
  return false;
}

const HostTensor *InputSet::find(std::string_view name) const {
  for (size_t i = 0; i < sources.size(); ++i)
    if (program->inputs()->Get(static_cast<unsigned>(i))->name()->string_view() == name)
      return sources[i] ? &*sources[i] : nullptr;
  return nullptr;
}

void InputSet::store(size_t index, const MeshPosition &position, const TensorRef &to) const {
  const fb::Input &input = *program->inputs()->Get(index);
  Shard shard = position.shard(*input.shape(), *input.dims());
  const std::optional<HostTensor> &source = sources[index];
  std::memset(to.data, 0, to.elements() * bytesOf(to.dtype));
  if (!source) {
    double fill = input.fill();
    forEachRun(shard.inLocal(), shard.inLocal(), [&](int64_t at, int64_t, int64_t n) {
      for (int64_t i = at; i < at + n; ++i)
        if (to.dtype == fb::DType::i32)
          static_cast<int32_t *>(to.data)[i] = static_cast<int32_t>(fill);
        else if (to.dtype == fb::DType::i64)
          static_cast<int64_t *>(to.data)[i] = static_cast<int64_t>(fill);
        else if (to.dtype == fb::DType::u8)
          static_cast<uint8_t *>(to.data)[i] = static_cast<uint8_t>(fill);
        else
          convertRun(static_cast<char *>(to.data) + i * bytesOf(to.dtype), to.dtype, &fill,
                     fb::DType::f64, 1);
    });
    return;
  }
  int64_t first = shard.global.size() > 1 ? part * product(shard.global) : 0;
  const void *data =
      static_cast<const char *>(source->data) + static_cast<size_t>(first) * bytesOf(source->type);
  if (!isInteger(to.dtype) || source->type == to.dtype) {
    convertBox(shard.inLocal(), to.data, to.dtype, shard.inGlobal(), data, source->type);
    return;
  }
  forEachRun(shard.inLocal(), shard.inGlobal(), [&](int64_t t, int64_t f, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      int64_t value = integerAt(data, source->type, f + i);
      if (to.dtype == fb::DType::i32)
        static_cast<int32_t *>(to.data)[t + i] = static_cast<int32_t>(value);
      else
        static_cast<int64_t *>(to.data)[t + i] = value;
    }
  });
}

/// `count` elements from `index` of a local tensor on, in the file's type.
static std::vector<uint8_t> inFileType(const TensorRef &local, int64_t index, int64_t count,
                                       TensorType type) {
  const char *from = static_cast<const char *>(local.data) + index * bytesOf(local.dtype);
  size_t size = bytesOf(*planType(type));
  std::vector<uint8_t> bytes(static_cast<size_t>(count) * size);
  if (type == TensorType::f32 || type == TensorType::f64) {
    convertRun(bytes.data(), *planType(type), from, local.dtype, count);
    return bytes;
  }
  for (int64_t i = 0; i < count; ++i) {
    int64_t value = integerAt(from, local.dtype, i);
    auto narrow = static_cast<int32_t>(value);
    std::memcpy(&bytes[static_cast<size_t>(i) * size],
                type == TensorType::i64 ? static_cast<void *>(&value) : &narrow, size);
  }
  return bytes;
}

namespace {

/// The tensors of the file that shards are written to. Several sources may name one.
class FileTensors {
public:
  explicit FileTensors(std::span<const ShardToWrite> shards) {
    for (const ShardToWrite &shard : shards) {
      if (!shard.source) {
        add(shard.spec);
        continue;
      }
      std::vector<int64_t> disk = toVector(*shard.source->disk_shape());
      for (const std::string &name : sourceNames(*shard.source, shard.spec.shape))
        add({name, shard.spec.type, disk});
    }
  }
  size_t operator[](const std::string &name) const { return numbers.at(name); }
  const std::vector<TensorSpec> &specs() const { return list; }

private:
  void add(const TensorSpec &spec) {
    if (numbers.emplace(spec.name, list.size()).second)
      list.push_back(spec);
  }
  std::vector<TensorSpec> list;
  std::map<std::string, size_t> numbers;
};

/// Writes what this rank owns of one shard.
class ShardWrite {
public:
  ShardWrite(const ShardToWrite &shard, const FileTensors &files, SafeTensorsWriter &writer)
      : shard(shard), files(files), writer(writer), size(bytesOf(*planType(shard.spec.type))) {}

  Status run() {
    if (!shard.source) {
      runs(files[shard.spec.name], shard.shard.inGlobal(), shard.shard.inLocal(), 0);
      return std::move(status);
    }
    forEachPiece(*shard.source, shard.shard, nullptr, INT64_MAX, [&](const WeightPiece &piece) {
      size_t tensor = files[piece.name];
      if (piece.permute.empty())
        runs(tensor, piece.onDisk, piece.inPiece, piece.offset);
      else
        permuted(tensor, piece);
    });
    return std::move(status);
  }

private:
  void write(size_t tensor, int64_t element, std::span<const uint8_t> bytes) {
    if (status)
      status = writer.write(tensor, static_cast<uint64_t>(element) * size, bytes);
  }

  void runs(size_t tensor, const Box &inFile, const Box &inLocal, int64_t offset) {
    forEachRun(inFile, inLocal, [&](int64_t g, int64_t l, int64_t n) {
      write(tensor, g, inFileType(shard.local, offset + l, n, shard.spec.type));
    });
  }

  void permuted(size_t tensor, const WeightPiece &piece) {
    PieceInFile inFile = piece.inFileOrder();
    std::vector<uint8_t> bytes(inFile.elements.size() * size);
    for (size_t i = 0; i < inFile.elements.size(); ++i)
      std::memcpy(
          &bytes[i * size],
          inFileType(shard.local, piece.offset + inFile.elements[i], 1, shard.spec.type).data(),
          size);
    forEachRun(inFile.box, Box::all(inFile.box.extent), [&](int64_t g, int64_t l, int64_t n) {
      write(tensor, g,
            std::span(bytes).subspan(static_cast<size_t>(l) * size, static_cast<size_t>(n) * size));
    });
  }

  const ShardToWrite &shard;
  const FileTensors &files;
  SafeTensorsWriter &writer;
  size_t size;
  Status status;
};

} // namespace

Status writeShards(const std::string &path, std::span<const ShardToWrite> shards,
                   Communicator &communicator) {
  FileTensors files(shards);
  const std::vector<TensorSpec> &specs = files.specs();
  // All ranks need rank 0's name for the temporary file.
  Group world = worldGroup(communicator);
  std::vector<uint64_t> tags(world.members.size());
  uint64_t tag = static_cast<uint64_t>(getpid());
  if (Status s = communicator.allGather(world, &tag, tags.data(), sizeof tag, "writing " + path);
      !s)
    return s;

  std::optional<SafeTensorsWriter> writer;
  auto openWith = [&](auto open) -> Status {
    Expected<SafeTensorsWriter> opened = open(path, specs, tags[0], {});
    if (!opened)
      return opened.takeStatus();
    writer.emplace(std::move(*opened));
    return {};
  };
  Status mine;
  if (communicator.rank() == 0)
    mine = openWith(SafeTensorsWriter::create);
  if (Status s = agree(mine, communicator, "creating " + path); !s)
    return s;
  if (communicator.rank() != 0)
    mine = openWith(SafeTensorsWriter::join);

  for (size_t i = 0; i < shards.size() && mine; ++i) {
    if (shards[i].shard.owner)
      mine = ShardWrite(shards[i], files, *writer).run();
  }
  if (mine && communicator.rank() != 0)
    mine = writer->sync();
  if (Status s = agree(mine, communicator, "writing " + path); !s)
    return s;
  if (communicator.rank() == 0)
    mine = writer->commit();
  return agree(mine, communicator, "finishing " + path);
}

Status writeOutputs(const std::string &path, const fb::Program &program,
                    const MeshPosition &position, std::span<const TensorRef> views,
                    Communicator &communicator) {
  std::vector<ShardToWrite> shards;
  for (size_t i = 0; i < views.size(); ++i) {
    const fb::Output &output = *program.outputs()->Get(i);
    TensorType type = isInteger(output.dtype())          ? TensorType::i64
                      : views[i].dtype == fb::DType::f64 ? TensorType::f64
                                                         : TensorType::f32;
    shards.push_back({{output.name()->str(), type, toVector(*output.shape())},
                      position.shard(*output.shape(), *output.dims()),
                      views[i],
                      output.source()});
  }
  return writeShards(path, shards, communicator);
}

Expected<std::vector<GatheredOutput>> gatherOutputs(const fb::Plan &plan,
                                                    const fb::Program &program,
                                                    std::span<const TensorRef> views,
                                                    Communicator &communicator) {
  Group world = worldGroup(communicator);
  std::vector<GatheredOutput> outputs;
  for (size_t i = 0; i < views.size(); ++i) {
    const fb::Output &output = *program.outputs()->Get(i);
    size_t size = bytesOf(views[i].dtype);
    size_t bytes = views[i].elements() * size;
    std::vector<char> all(bytes * world.members.size());
    if (Status s = communicator.allGather(world, views[i].data, all.data(), bytes,
                                          "gathering " + output.name()->str());
        !s)
      return s;
    if (communicator.rank() != 0)
      continue;
    GatheredOutput gathered{
        output.name()->str(), toVector(*output.shape()), {}, output.source() != nullptr};
    gathered.values.resize(product(gathered.shape));
    for (int rank : world.members) {
      Shard shard = MeshPosition(plan, program, rank).shard(*output.shape(), *output.dims());
      const char *local = all.data() + rank * bytes;
      forEachRun(shard.inGlobal(), shard.inLocal(), [&](int64_t g, int64_t l, int64_t n) {
        if (isFloat(views[i].dtype))
          convertRun(&gathered.values[g], fb::DType::f64, local + l * size, views[i].dtype, n);
        else
          for (int64_t k = 0; k < n; ++k)
            gathered.values[g + k] = static_cast<double>(integerAt(local, views[i].dtype, l + k));
      });
    }
    outputs.push_back(std::move(gathered));
  }
  return outputs;
}

} // namespace moira::rt
