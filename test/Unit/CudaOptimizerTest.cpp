//===- CudaOptimizerTest.cpp - updates of weights on the GPU ----------------===//
// Every call that changes states or adds up squares for one, against the host's reference in
// double: what lies in its place afterwards, and how far that has moved. Sizes around blocks and
// chunks, operands off their alignment, experts without tokens.
//===----------------------------------------------------------------------===//
#include "CudaTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

class CudaOptimizer : public CudaTest {
protected:
  Tensor<float> normal(Shape shape) { return random.normal<float>(std::move(shape)); }
  Tensor<float> positive(Shape shape) {
    Tensor<float> values = normal(std::move(shape));
    for (float &v : values.values)
      v = 0.1f + std::abs(v);
    return values;
  }
  /// A gradient that is in f32 and bf16 the same.
  Operand gradient(Shape shape) { return rounded(T(normal(std::move(shape))), fb::DType::bf16); }
  Operand one(float value) { return A(Tensor<float>({1}, {value})); }
  Operand number(int32_t value) { return I(Tensor<int32_t>({1}, {value})); }

  /// A call that reads and writes its outputs where they lie, which are `places` before it.
  void expectUpdates(std::string_view name, const std::vector<Operand> &in,
                     const std::vector<Operand> &places, const CallParams &p);
};

/// That `was` has become `want`, within the rounding of numbers around 1; where there are many, to
/// three digits of the step besides the rounding of what it moves.
void expectStep(std::string_view name, const Tensor<float> &was, const Tensor<float> &got,
                const std::vector<double> &want) {
  double error = 0, step = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    double before = was.values[i], off = got.values[i] - want[i], moved = want[i] - before;
    error += off * off;
    step += moved * moved;
    size += 1 + before * before + want[i] * want[i];
  }
  EXPECT_LE(std::sqrt(error), 1e-6 * std::sqrt(size)) << name;
  if (want.size() > 200)
    EXPECT_LE(std::sqrt(error), 1e-3 * std::sqrt(step) + 2e-7 * std::sqrt(size)) << name;
}

void CudaOptimizer::expectUpdates(std::string_view name, const std::vector<Operand> &in,
                                  const std::vector<Operand> &places, const CallParams &p) {
  if (isLeftOut())
    return;
  std::vector<std::vector<double>> want;
  {
    std::vector<Tensor<double>> outputs, inputs;
    std::vector<TensorRef> outRefs, inRefs;
    inputs.reserve(in.size());
    outputs.reserve(places.size());
    for (const Operand &o : places)
      outRefs.push_back(outputs.emplace_back(o.floats().as<double>()));
    for (const Operand &o : in)
      if (std::holds_alternative<Tensor<int32_t>>(o.tensor))
        inRefs.push_back(o.ints());
      else
        inRefs.push_back(inputs.emplace_back(o.floats().as<double>()));
    Status s = runHostCall(name, CallFlavor::reference, inRefs, outRefs, p);
    ASSERT_TRUE(s.ok()) << s.str();
    for (const Tensor<double> &t : outputs)
      want.push_back(t.values);
  }
  for (auto [gradients, shifted] : {std::pair(fb::DType::f32, false),
                                    {fb::DType::f32, true},
                                    {fb::DType::bf16, false},
                                    {fb::DType::bf16, true}}) {
    std::vector<std::vector<uint8_t>> first;
    for (int run = 0; run < (everyNthCase() > 1 ? 1 : 2); ++run) {
      std::vector<std::unique_ptr<OnDevice>> inputs, outputs;
      std::vector<TensorRef> inRefs, outRefs;
      for (const Operand &o : in)
        inRefs.push_back(
            inputs.emplace_back(std::make_unique<OnDevice>(o, gradients, shifted))->ref());
      for (const Operand &o : places)
        outRefs.push_back(
            outputs.emplace_back(std::make_unique<OnDevice>(o, fb::DType::f32, shifted))->ref());
      mustWork(cudaDeviceSynchronize());
      Status s = cuda::runCudaCall(name, inRefs, outRefs, p, gpu->context);
      ASSERT_TRUE(s.ok()) << name << ": " << s.str();
      EXPECT_EQ(gpu->finish(), 0) << name;
      for (size_t i = 0; i < inputs.size(); ++i) {
        EXPECT_TRUE(inputs[i]->bytes().guardsIntact()) << name << " writes outside input " << i;
        if (const auto *floats = std::get_if<Tensor<float>>(&in[i].tensor))
          EXPECT_EQ(inputs[i]->read(in[i]).floats().values, floats->values)
              << name << " writes to input " << i;
      }
      for (size_t i = 0; i < outputs.size(); ++i) {
        EXPECT_TRUE(outputs[i]->bytes().guardsIntact()) << name << " writes outside output " << i;
        if (run == 0) {
          first.push_back(outputs[i]->bytes().download());
          expectStep(name, places[i].floats(), outputs[i]->read(places[i]).floats(), want[i]);
        } else {
          EXPECT_EQ(first[i], outputs[i]->bytes().download())
              << name << ": output " << i << " differs from run to run";
        }
      }
    }
  }
}

constexpr int64_t kSizes[] = {1, 31, 255, 257, 4096, 4097, 70001, 70004};

TEST_F(CudaOptimizer, AdamW) {
  CallParams p =
      params({}, {{"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"weight_decay", 0.1}});
  CallParams plain = params({}, {{"beta1", 0}, {"beta2", 0}, {"eps", 1e-3}, {"weight_decay", 0}});
  for (int64_t n : kSizes)
    for (int32_t step : {1, 2, 1000, 100000}) {
      std::vector<Operand> in{gradient({n}), one(0.02f), number(step)};
      std::vector<Operand> places{A(normal({n})), A(normal({n})), A(positive({n}))};
      expectUpdates("adamw", in, places, p);
      in.push_back(one(0.3f));
      expectUpdates("adamw", in, places, p);
      expectUpdates("adamw", in, places, plain);
    }
}

TEST_F(CudaOptimizer, AdamWAddsUpSquaresOfItsGradient) {
  CallParams p =
      params({}, {{"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"weight_decay", 0.1}});
  std::vector<Shape> shapes;
  for (int64_t n : kSizes)
    shapes.push_back({n});
  shapes.push_back({3, random.between(1, 2000), random.between(1, 40)});
  shapes.push_back({4096 * 1024 + 5}); // more than all blocks make in one round, also in fours
  shapes.push_back({4096 * 1024 * 2 + 4});
  for (const Shape &shape : shapes) {
    std::vector<Operand> in{gradient(shape), one(0.02f), number(7)};
    std::vector<Operand> places{A(normal(shape)), A(normal(shape)), A(positive(shape)), one(5)};
    expectUpdates("adamw", in, places, p);
    in.push_back(one(0.3f)); // which the sum is without
    expectUpdates("adamw", in, places, p);
  }
  // Of nothing, 0.
  OnDevice none(A(Shape{0}), fb::DType::f32, false), rate(one(0.1f), fb::DType::f32, false),
      step(number(1), fb::DType::f32, false), sum(one(5), fb::DType::f32, false);
  mustWork(cudaDeviceSynchronize());
  ASSERT_TRUE(cuda::runCudaCall("adamw", std::vector{none.ref(), rate.ref(), step.ref()},
                                std::vector{none.ref(), none.ref(), none.ref(), sum.ref()}, p,
                                gpu->context));
  EXPECT_EQ(gpu->finish(), 0);
  EXPECT_EQ(sum.read(one(5)).floats().values, std::vector<float>{0});
}

TEST_F(CudaOptimizer, AdamWOfExpertsPassesOverThoseWithoutTokens) {
  CallParams p =
      params({}, {{"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"weight_decay", 0.1}});
  for (auto [experts, each] :
       {std::pair<int64_t, int64_t>{1, 1}, {3, 257}, {70, 100}, {300, 9}, {2, 40000}}) {
    Tensor<float> load({experts}), steps({experts});
    for (int64_t e = 0; e < experts; ++e) {
      load.values[size_t(e)] = float(std::max<int64_t>(0, random.between(-3, 5)));
      steps.values[size_t(e)] = float(random.between(0, 40));
    }
    load.values[0] = 1; // so that something moves
    std::vector<Operand> in{gradient({experts, each}), one(0.02f), A(load)};
    std::vector<Operand> places{A(normal({experts, each})), A(normal({experts, each})),
                                A(positive({experts, each})), A(steps)};
    expectUpdates("expert_adamw", in, places, p);
    in.push_back(one(0.3f));
    expectUpdates("expert_adamw", in, places, p);
  }
}

TEST_F(CudaOptimizer, Sgd) {
  for (int64_t n : kSizes)
    for (int kind = 0; kind < 3; ++kind) { // plain, momentum, Nesterov
      CallParams p = params({{"nesterov", kind == 2}}, {{"momentum", 0.8}, {"weight_decay", 0.05}});
      std::vector<Operand> in{gradient({n}), one(0.1f)}, places{A(normal({n}))};
      if (kind)
        places.push_back(A(normal({n})));
      expectUpdates("sgd", in, places, p);
      in.push_back(one(0.3f));
      expectUpdates("sgd", in, places, p);
    }
}

TEST_F(CudaOptimizer, BiasesMoveAgainstTheLoad) {
  for (int64_t experts : {2, 3, 64, 300}) {
    Tensor<float> load({experts});
    for (float &n : load.values)
      n = float(random.between(0, 3));
    load.values[0] = 40;
    expectUpdates("balance_bias", {A(load)}, {A(normal({experts}))}, params({}, {{"rate", 0.25}}));
  }
  // An even load moves nothing, also where its mean is no float.
  OnDevice load(A(Tensor<float>({3}, {16777215, 16777215, 16777215})), fb::DType::f32, false),
      bias(A(Tensor<float>({3}, {1, 2, 3})), fb::DType::f32, false);
  mustWork(cudaDeviceSynchronize());
  ASSERT_TRUE(cuda::runCudaCall("balance_bias", std::vector{load.ref()}, std::vector{bias.ref()},
                                params({}, {{"rate", 0.25}}), gpu->context));
  EXPECT_EQ(gpu->finish(), 0);
  EXPECT_EQ(bias.read(A(Shape{3})).floats().values, (std::vector<float>{1, 2, 3}));
}

TEST_F(CudaOptimizer, TheFirstMicroBatchIsStoredAndLaterOnesAreAdded) {
  for (int64_t n : {int64_t(1), int64_t(257), int64_t(300001)})
    for (int32_t micro : {0, 1, 7}) {
      Tensor<float> sum = normal({n});
      if (micro == 0) // what lies there from the step before is nothing to the first
        sum.values[0] = INFINITY;
      const Operand part = gradient({n});
      const Tensor<float> &x = part.floats();
      for (auto [type, shifted] :
           {std::pair(fb::DType::f32, false), {fb::DType::f32, true}, {fb::DType::bf16, true}}) {
        OnDevice from(part, type, shifted), to(A(sum), fb::DType::f32, shifted),
            which(number(micro), fb::DType::f32, false);
        mustWork(cudaDeviceSynchronize());
        ASSERT_TRUE(cuda::runCudaCall("accumulate", std::vector{from.ref(), which.ref()},
                                      std::vector{to.ref()}, {}, gpu->context));
        EXPECT_EQ(gpu->finish(), 0);
        Tensor<float> want = x;
        for (size_t i = 0; micro && i < want.values.size(); ++i)
          want.values[i] = sum.values[i] + x.values[i];
        EXPECT_EQ(to.read(A(Shape{n})).floats().values, want.values);
        EXPECT_TRUE(to.bytes().guardsIntact());
      }
    }
}

TEST_F(CudaOptimizer, SquaresOfAllAndOfPlaces) {
  for (Mode mode : allModes()) {
    mode.f32Error = 1e-6;
    mode.bf16Error = 1e-6; // sums are in f32
    for (int64_t n : {0, 1, 255, 4096, 4097, 300001})
      expectAgrees(*gpu, "squares", {T(normal({n}))}, {A(Shape{1})}, {}, mode);
    struct Places {
      Shape of, out;
      int64_t keep, tail;
    };
    for (const Places &places : {Places{{3, 5, 7}, {3, 7}, 1, 1},
                                 {{5, 7}, {5}, 1, 0},
                                 {{3000, 33}, {3000}, 1, 0},
                                 {{4, 30, 20}, {4, 30}, 2, 0},
                                 {{2, 200, 300}, {2}, 1, 0},
                                 {{9000, 40}, {40}, 0, 1},
                                 {{3, 600, 5}, {3, 5}, 1, 1},
                                 {{2, 6, 70, 3, 4}, {2, 3, 4}, 1, 2},
                                 {{7, 1}, {1}, 0, 1},
                                 {{6, 9, 1}, {6, 1}, 1, 1},
                                 {{4, 9}, {4, 9}, 2, 0},
                                 {{300, 1000}, {300, 1000}, 1, 1}})
      expectAgrees(*gpu, "squares", {T(normal(places.of))}, {A(places.out)},
                   params({{"keep", places.keep}, {"tail", places.tail}}), mode);
  }
}

TEST_F(CudaOptimizer, Clipping) {
  for (double most : {0.0, 1.0, 100.0})
    expectAgrees(*gpu, "clip_factor", {one(16)}, {A(Shape{1}), A(Shape{1})},
                 params({}, {{"max_norm", most}}), {.f32Error = 1e-6});
}

/// A state, its parameters, and how its dimensions are a matrix's; rows 0: it is none.
struct Factored {
  Shape shape;
  int64_t parameters, kept, rows;
  Shape part(int64_t first, int64_t last) const {
    return {shape.begin() + first, shape.begin() + last};
  }
  Shape ofRows() const { return part(0, kept + rows); }
  Shape ofColumns() const {
    Shape all = part(0, kept), columns = part(kept + rows, int64_t(shape.size()));
    all.insert(all.end(), columns.begin(), columns.end());
    return all;
  }
  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : part(parameters, int64_t(shape.size())))
      n *= d;
    return n;
  }
};

const Factored kFactored[] = {{{40, 70}, 0, 0, 1},         {{1, 1}, 0, 0, 1},
                              {{5, 300, 17}, 1, 1, 1},     {{2, 3, 20, 30}, 1, 2, 1},
                              {{3, 2, 40, 50}, 2, 2, 1},   {{4, 8, 6, 33}, 1, 1, 2},
                              {{1000, 3, 4}, 1, 1, 1},     {{9, 100, 100}, 0, 1, 1},
                              {{6, 10, 4, 5, 7}, 1, 2, 2}, {{2, 300, 301}, 1, 1, 1}};
const Factored kVectors[] = {
    {{70}, 0, 0, 0}, {{1}, 0, 0, 0}, {{5, 300}, 1, 0, 0}, {{70000}, 0, 0, 0}};

TEST_F(CudaOptimizer, SecondMoments) {
  CallParams p = params({{"count", 7}}, {{"decay", 0.8}, {"eps", 1e-30}});
  for (int64_t n : kSizes)
    for (int32_t step : {1, 2, 5000}) {
      std::vector<Operand> in{A(positive({n})), A(positive({n})), number(step)};
      expectAgrees(*gpu, "second_moment", in, {A(Shape{n})}, p, {});
      in.push_back(one(0.3f));
      expectAgrees(*gpu, "second_moment", in, {A(Shape{n})}, p, {});
    }
  // What has never had a gradient keeps eps, a number near the smallest.
  expectAgrees(*gpu, "second_moment",
               {A(Tensor<float>({2}, {0, 1e-30f})), A(Tensor<float>({2}, {0, 0})), number(3)},
               {A(Shape{2})}, p, {});
}

TEST_F(CudaOptimizer, AdafactorOfMatrices) {
  for (const Factored &f : kFactored)
    for (bool shifted : {false, true}) {
      std::vector<Operand> moments{A(positive(f.ofRows())), A(positive(f.ofColumns())),
                                   A(positive(f.part(0, f.kept)))};
      std::vector<Operand> in{A(normal(f.shape))};
      in.insert(in.end(), moments.begin(), moments.end());
      std::map<std::string, int64_t, std::less<>> sizes{
          {"parameters", f.parameters}, {"kept", f.kept}, {"rows", f.rows}};
      expectAgrees(*gpu, "adafactor_norm", in, {A(f.part(0, f.parameters))}, params(sizes),
                   {.shifted = shifted});
      sizes["count"] = f.size();
      std::map<std::string, double, std::less<>> reals{
          {"clip", 1}, {"eps", 1e-3}, {"weight_decay", 0.1}};
      Operand norms = A(positive(f.part(0, f.parameters)));
      for (float &norm : std::get<Tensor<float>>(norms.tensor).values)
        norm *= float(2 * f.size()); // some are clipped
      std::vector<Operand> update{in[0], one(0.03f), norms};
      update.insert(update.end(), moments.begin(), moments.end());
      std::vector<Operand> places{A(normal(f.shape)), A(normal(f.ofRows())),
                                  A(normal(f.ofColumns())), A(normal(f.part(0, f.kept)))};
      expectUpdates("adafactor", update, places, params(sizes, reals));
      update.push_back(one(0.3f));
      expectUpdates("adafactor", update, places, params(sizes, reals, {{"with", "factor"}}));
      update.insert(update.end() - 1, A(positive(f.part(0, f.parameters))));
      expectUpdates("adafactor", update, places,
                    params(sizes, reals, {{"with", "weights factor"}}));
    }
}

TEST_F(CudaOptimizer, AdafactorOfVectors) {
  for (const Factored &f : kVectors) {
    Operand squares = A(positive(f.shape)), grad = A(normal(f.shape));
    std::map<std::string, int64_t, std::less<>> sizes{{"parameters", f.parameters}};
    CallParams ofNorm = params({{"parameters", f.parameters}, {"kept", 0}, {"rows", 0}});
    expectAgrees(*gpu, "adafactor_norm", {grad, squares}, {A(f.part(0, f.parameters))}, ofNorm, {});
    sizes["count"] = f.size();
    std::map<std::string, double, std::less<>> reals{
        {"clip", 1}, {"eps", 1e-3}, {"weight_decay", 0.1}};
    std::vector<Operand> update{grad, one(0.03f), A(positive(f.part(0, f.parameters))), squares};
    std::vector<Operand> places{A(normal(f.shape)), A(normal(f.shape))};
    expectUpdates("adafactor_vector", update, places, params(sizes, reals));
    update.push_back(A(positive(f.part(0, f.parameters))));
    expectUpdates("adafactor_vector", update, places, params(sizes, reals, {{"with", "weights"}}));
  }
}

} // namespace
