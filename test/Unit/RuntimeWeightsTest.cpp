//===- RuntimeWeightsTest.cpp -----------------------------------*- C++ -*-===//
// Shows that every rank gets its part of every weight: against an oracle that works element by
// element from the definitions, on random shapes, meshes, pads and layouts on disk; and that every
// way in which a checkpoint can disagree with a plan is reported by name.
//===----------------------------------------------------------------------===//
#include "RuntimeFiles.h"
#include "RuntimePlanBuilder.h"

#include "moira/rt/Weights.h"

#include <gmock/gmock.h>
#include <random>

using namespace moira::rt;
using namespace moira::test;
using testing::HasSubstr;

namespace {

int64_t product(const Shape &shape) {
  int64_t n = 1;
  for (int64_t d : shape)
    n *= d;
  return n;
}

/// Odometer over a shape in C order.
bool next(Shape &index, const Shape &shape) {
  for (size_t d = shape.size(); d-- > 0;) {
    if (++index[d] < shape[d])
      return true;
    index[d] = 0;
  }
  return false;
}

/// A block of `shape` as it lies on disk: dimension order[i] of the block is the i-th there.
/// The block of this shape within what `slice` (dim, first, size) makes it a part of; the rest is
/// −1.
std::vector<float> surrounded(const std::vector<float> &block, const Shape &shape,
                              const Shape &slice) {
  Shape stored = shape;
  size_t dim = size_t(slice[0]);
  stored[dim] = slice[2];
  std::vector<float> out(product(stored), -1.0f);
  int64_t inner = product(Shape(shape.begin() + slice[0] + 1, shape.end()));
  for (size_t i = 0; i < block.size(); ++i) {
    int64_t column = int64_t(i) % inner, row = int64_t(i) / inner % shape[dim],
            outer = int64_t(i) / inner / shape[dim];
    out[(outer * slice[2] + slice[1] + row) * inner + column] = block[i];
  }
  return out;
}

std::vector<float> permuted(const std::vector<float> &block, const Shape &shape,
                            const std::vector<uint8_t> &order) {
  Shape stored, index(shape.size(), 0);
  for (uint8_t d : order)
    stored.push_back(shape[d]);
  std::vector<float> out;
  do {
    Shape inBlock(shape.size());
    for (size_t i = 0; i < order.size(); ++i)
      inBlock[order[i]] = index[i];
    int64_t at = 0;
    for (size_t d = 0; d < shape.size(); ++d)
      at = at * shape[d] + inBlock[d];
    out.push_back(block[at]);
  } while (next(index, stored));
  return out;
}

struct Case {
  PlanBuilder::Mesh mesh;
  Shape shape;
  std::vector<DimSpec> dims;
  SourceSpec source;
};

Case randomCase(std::mt19937 &random) {
  auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  Case c;
  int axes = pick(1, 3);
  for (int a = 0; a < axes; ++a)
    c.mesh.axes.push_back(
        {std::string(1, static_cast<char>('a' + a)), static_cast<uint32_t>(pick(1, 3))});
  bool perExpert = pick(0, 1), list = pick(0, 2) == 0;
  int rank = pick(1, 3) + perExpert + list;
  std::vector<uint8_t> left;
  for (int a = 0; a < axes; ++a)
    left.push_back(static_cast<uint8_t>(a));
  std::shuffle(left.begin(), left.end(), random);
  for (int d = 0; d < rank; ++d) {
    DimSpec dim;
    bool isList = list && d == perExpert;
    while (!isList && !left.empty() && pick(0, 1)) {
      dim.axes.push_back(left.back());
      left.pop_back();
    }
    int64_t parts = 1;
    for (uint8_t a : dim.axes)
      parts *= c.mesh.axes[a].second;
    int64_t size = isList ? 2 : pick(1, 7);
    dim.pad = static_cast<uint32_t>((parts - size % parts) % parts);
    c.shape.push_back(size);
    c.dims.push_back(dim);
  }
  c.source.perExpert = perExpert;
  for (int j = 0; j < (list ? 2 : 1); ++j)
    c.source.names.push_back(perExpert ? "experts.{e}.w" + std::to_string(j)
                                       : "w" + std::to_string(j));
  Shape block(c.shape.begin() + perExpert + list, c.shape.end());
  if (!block.empty() && pick(0, 1)) { // a part of what is stored
    int64_t d = pick(0, static_cast<int>(block.size()) - 1), first = pick(0, 3);
    c.source.slice = {d, first, first + block[d] + pick(0, 2)};
    block[d] = c.source.slice[2];
  }
  if (pick(0, 1)) { // dimensions in another order
    for (size_t d = 0; d < block.size(); ++d)
      c.source.permute.push_back(static_cast<uint8_t>(d));
    std::shuffle(c.source.permute.begin(), c.source.permute.end(), random);
    Shape stored;
    for (uint8_t d : c.source.permute)
      stored.push_back(block[d]);
    block = stored;
  }
  switch (pick(0, 2)) { // any reshape of the block
  case 0:
    c.source.disk = block;
    break;
  case 1:
    c.source.disk = {product(block)};
    break;
  default:
    c.source.disk = {1, product(block)};
    break;
  }
  return c;
}

TEST(RuntimeWeights, EveryRankGetsItsBox) {
  const unsigned seed = 20240501;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int trial = 0; trial < 200; ++trial) {
    SCOPED_TRACE("trial " + std::to_string(trial));
    Case c = randomCase(random);
    // What the state tensor holds, element by element, and the same bytes cut into disk tensors.
    std::vector<float> global(product(c.shape));
    for (float &x : global)
      x = static_cast<float>(random() % 1000) + 1;
    std::vector<TestTensor> tensors;
    Shape blockShape(c.shape.begin() + c.source.perExpert + (c.source.names.size() > 1),
                     c.shape.end());
    int64_t block = product(blockShape), at = 0;
    int64_t experts = c.source.perExpert ? c.shape[0] : 1;
    for (int64_t e = 0; e < experts; ++e)
      for (const std::string &name : c.source.names) {
        std::vector<float> part(global.begin() + at, global.begin() + at + block);
        Shape stored = blockShape;
        if (!c.source.slice.empty()) {
          part = surrounded(part, blockShape, c.source.slice);
          stored[c.source.slice[0]] = c.source.slice[2];
        }
        if (!c.source.permute.empty())
          part = permuted(part, stored, c.source.permute);
        at += block;
        tensors.push_back(testTensor(sourceName(name, e), "F32", c.source.disk, part));
      }
    TempDir dir;
    writeFile(dir / "model.safetensors", safetensorsBytes(tensors));

    PlanBuilder builder(c.mesh);
    auto &program = builder.program(false);
    uint32_t w = program.state("w", fb::DType::f32, c.shape, c.dims, c.source);
    program.output("x", fb::DType::f32, {1}, {{}}, program.input("x", fb::DType::f32, {1}, {{}}));
    (void)w;
    std::vector<uint8_t> bytes = builder.finish();
    auto plan = PlanFile::fromBytes(bytes);
    ASSERT_TRUE(plan) << plan.status().str();
    auto checkpoint = Checkpoint::open(dir.str());
    ASSERT_TRUE(checkpoint) << checkpoint.status().str();
    const fb::Program &forward = *plan->program("forward");
    Status checked = checkWeights(plan->plan(), forward, *checkpoint);
    ASSERT_TRUE(checked) << checked.str();

    for (uint32_t rank = 0; rank < forward.ranks(); ++rank) {
      // This rank's coordinate along each axis: axes are major to minor.
      std::vector<int64_t> coordinate(c.mesh.axes.size());
      int64_t rest = rank;
      for (size_t a = c.mesh.axes.size(); a-- > 0; rest /= c.mesh.axes[a].second)
        coordinate[a] = rest % c.mesh.axes[a].second;
      Shape local;
      std::vector<int64_t> first;
      for (size_t d = 0; d < c.shape.size(); ++d) {
        int64_t parts = 1, index = 0;
        for (uint8_t a : c.dims[d].axes) {
          parts *= c.mesh.axes[a].second;
          index = index * c.mesh.axes[a].second + coordinate[a];
        }
        local.push_back((c.shape[d] + c.dims[d].pad) / parts);
        first.push_back(index * local.back());
      }
      std::vector<float> want;
      Shape index(local.size(), 0);
      do {
        int64_t flat = 0;
        bool pad = false;
        for (size_t d = 0; d < local.size(); ++d) {
          int64_t g = first[d] + index[d];
          pad |= g >= c.shape[d];
          flat = flat * c.shape[d] + g;
        }
        want.push_back(pad ? 0 : global[flat]);
      } while (next(index, local));

      const fb::State &state = *plan->plan().states()->Get(0);
      Shard shard = MeshPosition(plan->plan(), forward, static_cast<int>(rank))
                        .shard(*state.shape(), *state.dims());
      ASSERT_EQ(shard.local, local);
      std::vector<float> got(want.size(), 0);
      loadState(state, shard, *checkpoint, fb::DType::f32, got.data());
      ASSERT_EQ(got, want) << "rank " << rank;
    }
  }
}

TEST(RuntimeWeights, ConvertsTypes) {
  // bf16 keeps the upper half of f32; rounding is to nearest, ties to even.
  std::vector<uint16_t> bf16 = {0x3f80, 0xc000, 0x7f80};
  std::vector<float> wide(3);
  convertRun(wide.data(), fb::DType::f32, bf16.data(), fb::DType::bf16, 3);
  EXPECT_EQ(wide[0], 1.0f);
  EXPECT_EQ(wide[1], -2.0f);
  EXPECT_TRUE(std::isinf(wide[2]));
  std::vector<float> values = {1.0f + 1.0f / 256, 1.0f + 3.0f / 256, NAN, -0.0f, 3.4e38f};
  std::vector<uint16_t> narrow(5);
  convertRun(narrow.data(), fb::DType::bf16, values.data(), fb::DType::f32, 5);
  EXPECT_EQ(narrow[0], 0x3f80); // tie to even
  EXPECT_EQ(narrow[1], 0x3f82); // tie to even
  EXPECT_EQ(narrow[2] & 0x7fc0, 0x7fc0);
  EXPECT_EQ(narrow[3], 0x8000);
  EXPECT_EQ(narrow[4], 0x7f80); // rounds to infinity
  std::vector<uint16_t> half = {0x3c00, 0xc000, 0x0001, 0x7bff};
  std::vector<double> real(4);
  convertRun(real.data(), fb::DType::f64, half.data(), fb::DType::f16, 4);
  EXPECT_EQ(real[0], 1.0);
  EXPECT_EQ(real[1], -2.0);
  EXPECT_EQ(real[2], std::ldexp(1.0, -24));
  EXPECT_EQ(real[3], 65504.0);
}

TEST(RuntimeWeights, ReportsEveryDisagreement) {
  PlanBuilder builder({{{"tp", 1}}});
  auto &program = builder.program(false);
  for (const char *name : {"missing", "shape", "type", "good"})
    program.state(name, fb::DType::f32, {2, 2}, {{}, {}},
                  {{std::string(name) + ".weight"}, false, {2, 2}});
  program.state("experts", fb::DType::f32, {2, 2, 3}, {{}, {}, {}},
                {{"e.{e}.a", "e.{e}.b"}, true, {3}});
  program.output("x", fb::DType::f32, {1}, {{}}, program.input("x", fb::DType::f32, {1}, {{}}));
  std::vector<uint8_t> bytes = builder.finish();
  auto plan = PlanFile::fromBytes(bytes);
  ASSERT_TRUE(plan) << plan.status().str();

  TempDir dir;
  std::vector<float> four(4), three(3);
  writeFile(dir / "model.safetensors",
            safetensorsBytes({testTensor("shape.weight", "F32", {4}, four),
                              testTensor("type.weight", "I32", {2, 2}, four),
                              testTensor("good.weight", "F32", {2, 2}, four),
                              testTensor("surplus.weight", "F32", {2, 2}, four),
                              testTensor("e.0.a", "F32", {3}, three),
                              testTensor("e.0.b", "F32", {3}, three),
                              testTensor("e.1.b", "F32", {3}, three)}));
  auto checkpoint = Checkpoint::open(dir.str());
  ASSERT_TRUE(checkpoint);
  Status status = checkWeights(plan->plan(), *plan->program("forward"), *checkpoint);
  std::string text = status.str();
  EXPECT_EQ(status.diagnostics().size(), 5u) << text;
  EXPECT_THAT(text, HasSubstr("MOE-0302: "));
  EXPECT_THAT(text, HasSubstr("'missing.weight'"));
  EXPECT_THAT(text, HasSubstr("'e.1.a' is missing, state experts needs them of shape [3]"));
  EXPECT_THAT(text, HasSubstr("'shape.weight' is of shape [4], the plan expects [2, 2]"));
  EXPECT_THAT(text, HasSubstr("'type.weight' is I32"));
  EXPECT_THAT(text, HasSubstr("'surplus.weight'"));
  EXPECT_THAT(text, testing::Not(HasSubstr("'good.weight'")));
}

} // namespace
