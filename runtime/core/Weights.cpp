//===- Weights.cpp - from checkpoint tensors to state tensors -------------===//
// Source rules: docs/architecture.md section 1 and plan.fbs.
//===----------------------------------------------------------------------===//
#include "moira/rt/Weights.h"

#include <algorithm>
#include <cstring>

namespace moira::rt {
namespace {

/// The leading dimensions of a state tensor, that choose a checkpoint tensor.
struct Leading {
  int64_t experts = 1, names = 1;
  size_t dims = 0;
  bool perExpert = false, list = false;
  Leading(const fb::Source &source, int64_t firstSize) {
    perExpert = source.per_expert();
    list = source.names()->size() > 1;
    if (perExpert) {
      experts = firstSize;
      ++dims;
    }
    names = source.names()->size();
    dims += list;
  }
};

std::vector<int64_t> toVector(const flatbuffers::Vector<int64_t> &v) {
  return {v.begin(), v.end()};
}

/// Problems of tensors. Those of one state that differ in the name only become one line, so that a
/// wrong expert layout does not hide everything else.
class WeightProblems {
public:
  void add(ErrorId id, const std::string &file, const std::string &tensor,
           const std::string &what) {
    ++count;
    for (Line &line : lines)
      if (line.id == id && line.file == file && line.what == what) {
        line.last = tensor;
        ++line.tensors;
        return;
      }
    lines.push_back({id, file, tensor, tensor, what, 1});
  }
  /// So many that no reader needs more; also what ends the search through a hostile plan.
  bool enough() const { return count >= 1000; }
  void flush() {
    for (const Line &line : lines) {
      std::string tensors =
          line.tensors == 1 ? "tensor " + quoteName(line.first) + " is"
                            : format("%zu tensors, %s to %s, are", line.tensors,
                                     quoteName(line.first).c_str(), quoteName(line.last).c_str());
      status.add(line.id, line.file + ": " + tensors + " " + line.what);
    }
    lines.clear();
  }
  Status take() {
    flush();
    if (enough())
      status.add(status.diagnostics().front().id, "the search ended after 1000 such tensors");
    return std::move(status);
  }

private:
  struct Line {
    ErrorId id;
    std::string file, first, last, what;
    size_t tensors;
  };
  Status status;
  std::vector<Line> lines;
  size_t count = 0;
};

} // namespace

std::optional<fb::DType> planType(TensorType type) {
  switch (type) {
  case TensorType::f32:
    return fb::DType::f32;
  case TensorType::f16:
    return fb::DType::f16;
  case TensorType::bf16:
    return fb::DType::bf16;
  case TensorType::f64:
    return fb::DType::f64;
  case TensorType::i32:
    return fb::DType::i32;
  case TensorType::i64:
    return fb::DType::i64;
  case TensorType::u8:
  case TensorType::boolean:
    return fb::DType::u8;
  default:
    return std::nullopt;
  }
}

std::string sourceName(std::string_view pattern, int64_t expert) {
  size_t at = pattern.find("{e}");
  if (at == std::string_view::npos)
    return std::string(pattern);
  std::string name(pattern.substr(0, at));
  return name.append(std::to_string(expert)).append(pattern.substr(at + 3));
}

Status checkWeights(const fb::Plan &plan, const fb::Program &program,
                    const Checkpoint &checkpoint) {
  WeightProblems problems;
  std::vector<bool> used(checkpoint.tensors().size(), false);
  for (const fb::State *state : statesOf(plan, program)) {
    if (!state->source())
      continue;
    const fb::Source &source = *state->source();
    Leading leading(source, state->shape()->size() ? state->shape()->Get(0) : 1);
    std::vector<int64_t> disk = toVector(*source.disk_shape());
    for (int64_t e = 0; e < leading.experts && !problems.enough(); ++e) {
      for (const flatbuffers::String *pattern : *source.names()) {
        std::string name = sourceName(pattern->string_view(), e);
        const Checkpoint::Entry *entry = checkpoint.find(name);
        if (!entry) {
          problems.add(ErrorId::MissingTensor, checkpoint.path(), name,
                       format("missing, state %s needs %s of shape %s", state->name()->c_str(),
                              leading.experts > 1 ? "them" : "it", shapeText(disk).c_str()));
          continue;
        }
        used[entry - checkpoint.tensors().data()] = true;
        const TensorInfo &info = *entry->info;
        const std::string &file = entry->file->path();
        if (info.shape != disk)
          problems.add(ErrorId::TensorShape, file, name,
                       format("of shape %s, the plan expects %s", shapeText(info.shape).c_str(),
                              shapeText(disk).c_str()));
        bool integers = state->dtype() == fb::DType::i32;
        bool loads = integers ? info.type == TensorType::i32 || info.type == TensorType::i64
                              : info.type == TensorType::f32 || info.type == TensorType::bf16 ||
                                    info.type == TensorType::f16;
        if (!loads)
          problems.add(ErrorId::TensorDType, file, name,
                       format("%s; %s can be loaded", nameOf(info.type),
                              integers ? "I32 and I64" : "F32, BF16 and F16"));
      }
    }
    problems.flush();
  }
  if (const auto *unused = plan.info()->unused_tensors())
    for (const flatbuffers::String *name : *unused)
      if (const Checkpoint::Entry *entry = checkpoint.find(name->str()))
        used[entry - checkpoint.tensors().data()] = true;
  for (size_t i = 0; i < used.size() && !problems.enough(); ++i)
    if (!used[i]) {
      const Checkpoint::Entry &entry = checkpoint.tensors()[i];
      problems.add(ErrorId::ExtraTensor, entry.file->path(), entry.info->name,
                   "not used by the plan; was it compiled from this model?");
    }
  return problems.take();
}

namespace {

/// convertBox from an array whose dimensions lie in another order: rows are gathered element by
/// element and then converted. `permute` as in WeightPiece.
void convertPermuted(const Box &to, void *dst, fb::DType dstType, const Box &from,
                     std::span<const uint8_t> permute, const void *src, fb::DType srcType) {
  size_t rank = permute.size();
  std::vector<int64_t> stride(rank);
  int64_t step = 1;
  for (size_t i = rank; i-- > 0; step *= from.shape[permute[i]])
    stride[permute[i]] = step;
  // A row is a run along the last dimension.
  Box rows = to;
  int64_t length = from.extent.back(), inner = stride.back();
  rows.shape.pop_back(), rows.start.pop_back(), rows.extent.pop_back();
  Box whole{rows.extent, std::vector<int64_t>(rank - 1, 0), rows.extent};
  size_t bytes = bytesOf(srcType);
  std::vector<char> row(static_cast<size_t>(length) * bytes);
  forEachRun(rows, whole, [&](int64_t first, int64_t number, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      int64_t offset = from.start.back() * inner, rest = number + r;
      for (size_t d = rank - 1; d-- > 0; rest /= rows.extent[d])
        offset += (from.start[d] + rest % rows.extent[d]) * stride[d];
      const char *at = static_cast<const char *>(src) + offset * static_cast<int64_t>(bytes);
      for (int64_t i = 0; i < length; ++i)
        std::memcpy(row.data() + static_cast<size_t>(i) * bytes,
                    at + i * inner * static_cast<int64_t>(bytes), bytes);
      int64_t target = (first + r) * to.shape.back() + to.start.back();
      convertRun(static_cast<char *>(dst) + target * static_cast<int64_t>(bytesOf(dstType)),
                 dstType, row.data(), srcType, static_cast<size_t>(length));
    }
  });
}

} // namespace

PieceInFile WeightPiece::inFileOrder() const {
  size_t rank = permute.size();
  std::vector<int64_t> stride(rank), strideInFile(rank);
  int64_t step = 1, count = 1;
  for (size_t i = rank; i-- > 0; step *= inPiece.shape[i])
    stride[i] = step;
  PieceInFile result;
  for (size_t i = 0; i < rank; ++i) {
    size_t dim = permute[i];
    result.box.shape.push_back(onDisk.shape[dim]);
    result.box.start.push_back(onDisk.start[dim]);
    result.box.extent.push_back(onDisk.extent[dim]);
    strideInFile[i] = stride[dim];
    count *= onDisk.extent[dim];
  }
  result.elements.reserve(static_cast<size_t>(count));
  for (int64_t n = 0; n < count; ++n) {
    int64_t rest = n, offset = 0;
    for (size_t i = rank; i-- > 0; rest /= result.box.extent[i])
      offset += rest % result.box.extent[i] * strideInFile[i];
    result.elements.push_back(offset);
  }
  return result;
}

void WeightPiece::load(const Checkpoint &checkpoint, fb::DType type, void *to) const {
  const void *data = checkpoint.data(*entry).data();
  fb::DType stored = *planType(entry->info->type);
  if (permute.empty())
    convertBox(inPiece, to, type, onDisk, data, stored);
  else
    convertPermuted(inPiece, to, type, onDisk, permute, data, stored);
  // Else a loaded model would be in memory twice, as weights and as pages of its files.
  checkpoint.release(*entry);
}

std::vector<std::string> sourceNames(const fb::Source &source, std::span<const int64_t> shape) {
  std::vector<std::string> names;
  Leading leading(source, shape.empty() ? 1 : shape[0]);
  for (int64_t e = 0; e < leading.experts; ++e)
    for (const flatbuffers::String *pattern : *source.names())
      names.push_back(sourceName(pattern->string_view(), e));
  return names;
}

void forEachPiece(const fb::State &state, const Shard &shard, const Checkpoint *checkpoint,
                  int64_t most, const std::function<void(const WeightPiece &)> &fn) {
  if (state.source())
    forEachPiece(*state.source(), shard, checkpoint, most, fn);
}

void forEachPiece(const fb::Source &source, const Shard &shard, const Checkpoint *checkpoint,
                  int64_t most, const std::function<void(const WeightPiece &)> &fn) {
  Leading leading(source, shard.global.empty() ? 1 : shard.global[0]);
  auto tail = [&](const std::vector<int64_t> &v) {
    return std::vector<int64_t>(v.begin() + leading.dims, v.end());
  };
  Box onDisk{tail(shard.global), tail(shard.start), tail(shard.valid)};
  Box inBlock{tail(shard.local), std::vector<int64_t>(onDisk.shape.size(), 0), onDisk.extent};
  if (const auto *slice = source.slice()) {
    size_t dim = static_cast<size_t>(slice->Get(0));
    onDisk.start[dim] += slice->Get(1);
    onDisk.shape[dim] = slice->Get(2);
  }
  std::vector<uint8_t> permute;
  if (source.permute())
    permute.assign(source.permute()->begin(), source.permute()->end());
  int64_t blockElements = 1;
  for (int64_t d : inBlock.shape)
    blockElements *= d;
  // Blocks are cut along their first dimension.
  int64_t rows = inBlock.extent.empty() ? 1 : inBlock.extent[0];
  int64_t rowElements =
      inBlock.shape.empty() ? 1 : blockElements / std::max<int64_t>(1, inBlock.shape[0]);
  int64_t step =
      std::clamp<int64_t>(most / std::max<int64_t>(1, rowElements), 1, std::max<int64_t>(1, rows));

  size_t listDim = leading.perExpert ? 1 : 0;
  int64_t firstExpert = leading.perExpert ? shard.start[0] : 0;
  int64_t experts = leading.perExpert ? shard.valid[0] : 1;
  int64_t firstName = leading.list ? shard.start[listDim] : 0;
  int64_t names = leading.list ? shard.valid[listDim] : 1;
  int64_t localNames = leading.list ? shard.local[listDim] : 1;
  for (int64_t e = 0; e < experts; ++e)
    for (int64_t j = 0; j < names; ++j) {
      std::string_view pattern = source.names()->Get(firstName + j)->string_view();
      WeightPiece piece{sourceName(pattern, firstExpert + e), nullptr, onDisk, inBlock, permute, 0};
      if (checkpoint)
        piece.entry = checkpoint->find(piece.name);
      for (int64_t row = 0; row < rows; row += step) {
        piece.offset = (e * localNames + j) * blockElements + row * rowElements;
        if (!inBlock.shape.empty()) {
          int64_t count = std::min(step, rows - row);
          piece.onDisk.start[0] = onDisk.start[0] + row;
          piece.onDisk.extent[0] = piece.inPiece.extent[0] = piece.inPiece.shape[0] = count;
        }
        fn(piece);
      }
    }
}

void loadState(const fb::State &state, const Shard &shard, const Checkpoint &checkpoint,
               fb::DType type, void *data) {
  forEachPiece(state, shard, &checkpoint, INT64_MAX, [&](const WeightPiece &piece) {
    piece.load(checkpoint, type,
               static_cast<char *>(data) + piece.offset * static_cast<int64_t>(bytesOf(type)));
  });
}

} // namespace moira::rt
