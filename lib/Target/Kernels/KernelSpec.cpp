//===- KernelSpec.cpp - Building, inference and dedup of specs ------------===//
//
// The spec's builders, its type and shape rules and the table of distinct kernels. The text form is
// in KernelText.cpp.
//
//===----------------------------------------------------------------------===//
#include "moira/Target/Kernels/KernelSpec.h"
#include "RowLayout.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/IntEqClasses.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/Sequence.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

using namespace moira::kernels;
using llvm::ArrayRef;
using llvm::Error;
using llvm::Expected;

unsigned moira::kernels::byteSize(ScalarType type) {
  return type == ScalarType::F32 || type == ScalarType::I32 ? 4 : 2;
}

//===----------------------------------------------------------------------===//
// Building
//===----------------------------------------------------------------------===//

unsigned KernelSpec::numInputs() const {
  return llvm::count_if(operands, [](const KernelOperand &o) { return !o.output; });
}

static unsigned addInput(KernelSpec &spec, ScalarType type, ArrayRef<int64_t> inner, bool rowwise) {
  spec.operands.push_back({type, llvm::SmallVector<int64_t, 4>(inner), rowwise, false});
  return spec.operands.size() - 1;
}
unsigned KernelSpec::input(ScalarType type, ArrayRef<int64_t> inner) {
  return addInput(*this, type, inner, true);
}
unsigned KernelSpec::shared(ScalarType type, ArrayRef<int64_t> inner) {
  return addInput(*this, type, inner, false);
}

/// Type and shape of a step's result, given its first argument's; infer() reports what does not
/// fit.
static RowValue resultOf(const KernelStep &step, RowValue result) {
  result.type = step.type;
  if (step.kind == StepKind::SumSquares)
    result.shape.resize(result.shape.size() - std::min<size_t>(step.normDims, result.shape.size()));
  if (step.kind == StepKind::Glu && result.shape.size() >= 2)
    result.shape.erase(result.shape.end() - 2);
  return result;
}

static RowValue inputValue(const KernelOperand &operand) {
  return {operand.type, operand.inner, operand.rowwise};
}

/// Type and shape of `value` in a spec that may not be valid: {} if they do not follow from
/// anything.
static RowValue valueOf(const KernelSpec &spec, unsigned value) {
  unsigned inputs = spec.numInputs();
  llvm::SmallVector<const KernelStep *> chain; // from `value` back to an input
  while (value >= inputs) {
    if (value - inputs >= spec.steps.size())
      return {};
    const KernelStep &step = spec.steps[value - inputs];
    if (step.args.empty() || step.args[0] >= value)
      return {};
    chain.push_back(&step);
    value = step.args[0];
  }
  RowValue result = inputValue(spec.operands[value]);
  for (const KernelStep *step : llvm::reverse(chain))
    result = resultOf(*step, std::move(result));
  return result;
}

unsigned KernelSpec::output(unsigned value) {
  RowValue v = valueOf(*this, value);
  operands.push_back({v.type, v.shape, /*rowwise=*/true, /*output=*/true});
  results.push_back(value);
  return operands.size() - 1;
}

static unsigned addStep(KernelSpec &spec, KernelStep step) {
  step.type = valueOf(spec, step.args[0]).type;
  spec.steps.push_back(std::move(step));
  return spec.numInputs() + spec.steps.size() - 1;
}

unsigned KernelSpec::rmsNorm(unsigned x, unsigned w, double eps) {
  return addStep(*this, {.kind = StepKind::RmsNorm, .args = {x, w}, .eps = eps});
}
unsigned KernelSpec::layerNorm(unsigned x, unsigned w, std::optional<unsigned> b, double eps) {
  KernelStep step{.kind = StepKind::LayerNorm, .args = {x, w}, .eps = eps};
  if (b)
    step.args.push_back(*b);
  return addStep(*this, std::move(step));
}
unsigned KernelSpec::sumSquares(unsigned x, unsigned normDims) {
  unsigned v = addStep(*this, {.kind = StepKind::SumSquares, .args = {x}, .normDims = normDims});
  back().type = ScalarType::F32;
  return v;
}
unsigned KernelSpec::rmsApply(unsigned x, unsigned ss, unsigned w, double eps, int64_t count) {
  return addStep(*this,
                 {.kind = StepKind::RmsApply, .args = {x, ss, w}, .eps = eps, .count = count});
}
unsigned KernelSpec::add(unsigned a, unsigned b) {
  return addStep(*this, {.kind = StepKind::Add, .args = {a, b}});
}
unsigned KernelSpec::scale(unsigned x, double factor) {
  return addStep(*this, {.kind = StepKind::Scale, .args = {x}, .factor = factor});
}
unsigned KernelSpec::act(unsigned x, Activation activation) {
  return addStep(*this, {.kind = StepKind::Act, .args = {x}, .activation = activation});
}
unsigned KernelSpec::clamp(unsigned x, double lo, double hi) {
  return addStep(*this, {.kind = StepKind::Clamp, .args = {x}, .lo = lo, .hi = hi});
}
unsigned KernelSpec::glu(unsigned x, Activation activation) {
  return addStep(*this, {.kind = StepKind::Glu, .args = {x}, .activation = activation});
}
unsigned KernelSpec::sigmoidGate(unsigned x, unsigned gate) {
  return addStep(*this, {.kind = StepKind::SigmoidGate, .args = {x, gate}});
}
unsigned KernelSpec::rope(unsigned x, unsigned cos, unsigned sin) {
  return addStep(*this, {.kind = StepKind::Rope, .args = {x, cos, sin}});
}
unsigned KernelSpec::cast(unsigned x, ScalarType type) {
  unsigned v = addStep(*this, {.kind = StepKind::Cast, .args = {x}});
  back().type = type;
  return v;
}

//===----------------------------------------------------------------------===//
// Inference
//===----------------------------------------------------------------------===//

static std::string str(ArrayRef<int64_t> shape) {
  return "[" +
         llvm::join(llvm::map_range(shape, [](int64_t d) { return std::to_string(d); }), ",") + "]";
}

namespace {
/// Checks one step against the values before it.
class StepChecker {
public:
  StepChecker(const KernelSpec &spec, unsigned index, ArrayRef<RowValue> values)
      : spec(spec), index(index), step(spec.steps[index]), values(values) {}

  Error run() {
    static constexpr unsigned arity[] = {2, 3, 1, 3, 2, 1, 1, 1, 1, 2, 3, 1};
    unsigned most = arity[unsigned(step.kind)], least = most - (step.kind == StepKind::LayerNorm);
    if (step.args.size() < least || step.args.size() > most)
      return fail(llvm::formatv("has {0} arguments and needs {1}", step.args.size(), most));
    for (unsigned a : step.args)
      if (a >= values.size())
        return fail(llvm::formatv("reads v{0}, which does not exist before it", a));
    if (!arg(0).rowwise)
      return fail("has a shared first argument");
    if (step.kind != StepKind::Cast) {
      for (unsigned a : step.args)
        if (values[a].type == ScalarType::I32)
          return fail("does not take i32");
      if (step.type == ScalarType::I32)
        return fail("cannot give i32");
    }
    return shapes();
  }

private:
  const RowValue &arg(unsigned i) const { return values[step.args[i]]; }
  bool isInput(unsigned i) const { return step.args[i] < spec.numInputs(); }

  Error fail(const llvm::Twine &what) const {
    return llvm::createStringError("step %u (%s) %s", index, toString(step.kind).data(),
                                   what.str().c_str());
  }
  Error mismatch(llvm::StringRef role, ArrayRef<int64_t> have, const llvm::Twine &want) const {
    return fail(llvm::formatv("has {0} of shape {1}; {2}", role, str(have), want.str()).str());
  }

  /// w must be an input whose shape is the last dims of x.
  Error checkWeight(unsigned i) const {
    ArrayRef<int64_t> x = arg(0).shape, w = arg(i).shape;
    if (!isInput(i) || arg(i).rowwise)
      return fail("needs a shared input as weight");
    if (w.empty() || w.size() > x.size() || x.take_back(w.size()) != w)
      return mismatch("a weight", w, "it must be the last dims of " + str(x));
    return Error::success();
  }

  Error shapes() const {
    ArrayRef<int64_t> x = arg(0).shape;
    switch (step.kind) {
    case StepKind::RmsNorm:
      return checkWeight(1);
    case StepKind::LayerNorm:
      if (Error e = checkWeight(1))
        return e;
      if (step.args.size() < 3)
        return Error::success();
      if (arg(2).shape != arg(1).shape)
        return mismatch("a bias", arg(2).shape, "it must have the weight's, " + str(arg(1).shape));
      return checkWeight(2);
    case StepKind::SumSquares:
      if (step.normDims < 1 || step.normDims > x.size())
        return fail(llvm::formatv("sums over {0} dims of {1}", step.normDims, str(x)));
      if (step.type != ScalarType::F32)
        return fail("gives f32 only");
      return Error::success();
    case StepKind::RmsApply: {
      if (Error e = checkWeight(2))
        return e;
      ArrayRef<int64_t> ss = arg(1).shape, lead = x.drop_back(arg(2).shape.size());
      if (ss != lead || !arg(1).rowwise)
        return mismatch("a sum of squares", ss, "it must be rowwise and " + str(lead));
      if (step.count < 1)
        return fail(llvm::formatv("has count {0}; it must be at least 1", step.count));
      return Error::success();
    }
    case StepKind::Add: {
      ArrayRef<int64_t> b = arg(1).shape;
      if (b.size() > x.size() || x.take_back(b.size()) != b)
        return mismatch("a second argument", b, "it must be the last dims of " + str(x));
      if (b.size() < x.size() && !isInput(1))
        return fail("needs an input as broadcast argument");
      return Error::success();
    }
    case StepKind::Clamp:
      return step.lo <= step.hi ? Error::success() : fail("has an empty range");
    case StepKind::Glu:
      if (x.size() < 2 || x[x.size() - 2] != 2)
        return mismatch("an argument", x, "it must be [..,2,F]");
      if (!(step.limit > 0))
        return fail("has a limit that is not positive");
      if (step.alpha != 1 && step.activation != Activation::Silu)
        return fail("has an alpha, which only silu takes");
      return Error::success();
    case StepKind::SigmoidGate: {
      ArrayRef<int64_t> g = arg(1).shape;
      if (x.empty() || g.size() != x.size() || g.drop_back() != x.drop_back() || g.back() != 1 ||
          !arg(1).rowwise)
        return mismatch("a gate", g, "it must be rowwise and " + str(x) + " with a last dim of 1");
      return Error::success();
    }
    case StepKind::Rope: {
      if (x.size() != 3)
        return mismatch("an argument", x, "it must be [S,H,d]");
      ArrayRef<int64_t> c = arg(1).shape;
      if (!isInput(1) || !isInput(2) || c != ArrayRef<int64_t>(arg(2).shape) || c.size() != 2 ||
          c[0] != x[0] || 2 * c[1] > x[2])
        return mismatch("a table", c,
                        "cos and sin must be inputs of shape [S,r], 2r at most d, x is " + str(x));
      return Error::success();
    }
    case StepKind::Scale:
    case StepKind::Act:
    case StepKind::Cast:
      return Error::success();
    }
    llvm_unreachable("all kinds handled");
  }

  const KernelSpec &spec;
  unsigned index;
  const KernelStep &step;
  ArrayRef<RowValue> values;
};
} // namespace

/// Of one row of an operand; keeps all offsets within a row far from overflow.
static constexpr int64_t kMostElements = int64_t(1) << 40;

static Error checkOperands(const KernelSpec &spec) {
  unsigned inputs = spec.numInputs();
  if (inputs == 0 || spec.steps.empty() || inputs == spec.operands.size())
    return llvm::createStringError("a kernel needs an input, a step and an output");
  for (auto [i, operand] : llvm::enumerate(spec.operands)) {
    if (operand.output != (i >= inputs))
      return llvm::createStringError("operand %zu is an input after an output", i);
    int64_t elements = 1;
    for (int64_t d : operand.inner) {
      if (d < 1)
        return llvm::createStringError("operand %zu has a dim of size %lld", i, (long long)d);
      if (d > kMostElements / elements)
        return llvm::createStringError("operand %zu is too large for a row", i);
      elements *= d;
    }
  }
  if (spec.results.size() != spec.operands.size() - inputs)
    return llvm::createStringError("%zu outputs but %zu results", spec.operands.size() - inputs,
                                   spec.results.size());
  return Error::success();
}

Expected<std::vector<RowValue>> KernelSpec::infer() const {
  if (Error e = checkOperands(*this))
    return e;
  unsigned inputs = numInputs();
  std::vector<RowValue> values;
  for (unsigned i = 0; i < inputs; ++i)
    values.push_back(inputValue(operands[i]));
  for (unsigned i = 0; i < steps.size(); ++i) {
    if (Error e = StepChecker(*this, i, values).run())
      return e;
    values.push_back(resultOf(steps[i], values[steps[i].args[0]]));
  }
  for (auto [i, value] : llvm::enumerate(results)) {
    const KernelOperand &operand = operands[inputs + i];
    if (value < inputs || value >= values.size())
      return llvm::createStringError("output %zu is v%u, which is not the result of a step", i,
                                     value);
    if (llvm::is_contained(ArrayRef<unsigned>(results).take_front(i), value))
      return llvm::createStringError("v%u is an output twice", value);
    if (!operand.rowwise || operand.type != values[value].type ||
        operand.inner != values[value].shape)
      return llvm::createStringError("output %zu does not have the type of v%u", i, value);
  }
  std::vector<KernelPart> parts = partsOf(*this);
  if (parts.size() == 1) {
    if (Expected<RowLayout> layout = RowLayout::get(*this, values); !layout)
      return layout.takeError();
    return values;
  }
  for (const KernelPart &part : parts)
    if (Expected<std::vector<RowValue>> own = part.spec.infer(); !own)
      return own.takeError();
  return values;
}

//===----------------------------------------------------------------------===//
// Parts
//===----------------------------------------------------------------------===//

std::vector<KernelPart> moira::kernels::partsOf(const KernelSpec &spec) {
  unsigned inputs = spec.numInputs();
  // Values that must stay together.
  llvm::IntEqClasses classes(inputs + spec.steps.size());
  auto isShared = [&](unsigned v) { return v < inputs && !spec.operands[v].rowwise; };
  for (auto [i, step] : llvm::enumerate(spec.steps))
    for (unsigned a : step.args)
      if (!isShared(a))
        classes.join(inputs + i, a);
  classes.compress();
  llvm::SmallVector<unsigned> order; // classes of steps
  for (unsigned i = 0; i < spec.steps.size(); ++i)
    if (!llvm::is_contained(order, classes[inputs + i]))
      order.push_back(classes[inputs + i]);
  std::vector<KernelPart> parts;
  if (order.size() < 2) {
    parts.push_back({spec, llvm::to_vector(llvm::seq<unsigned>(spec.operands.size()))});
    return parts;
  }
  for (auto [p, which] : llvm::enumerate(order)) {
    KernelPart &part = parts.emplace_back();
    part.spec.name = spec.name + "." + std::to_string(p);
    auto isRead = [&](unsigned v) {
      return llvm::any_of(llvm::enumerate(spec.steps), [&](auto step) {
        return classes[inputs + step.index()] == which && llvm::is_contained(step.value().args, v);
      });
    };
    llvm::DenseMap<unsigned, unsigned> numbers; // of values, in the part
    for (unsigned v = 0; v < inputs; ++v)
      // An input that nothing reads is the first part's, which complains.
      if (isShared(v) ? isRead(v)
                      : classes[v] == which || (p == 0 && !llvm::is_contained(order, classes[v]))) {
        numbers[v] = part.operands.size();
        part.spec.operands.push_back(spec.operands[v]);
        part.operands.push_back(v);
      }
    for (auto [i, step] : llvm::enumerate(spec.steps)) {
      if (classes[inputs + i] != which)
        continue;
      numbers[inputs + i] = numbers.size();
      KernelStep &own = part.spec.steps.emplace_back(step);
      for (unsigned &a : own.args)
        a = numbers.lookup(a);
    }
    for (auto [i, v] : llvm::enumerate(spec.results))
      if (v >= inputs && classes[v] == which) {
        part.spec.operands.push_back(spec.operands[inputs + i]);
        part.spec.results.push_back(numbers.lookup(v));
        part.operands.push_back(inputs + i);
      }
  }
  return parts;
}

//===----------------------------------------------------------------------===//
// Table of distinct kernels
//===----------------------------------------------------------------------===//

std::string KernelSpec::stepNames() const {
  return llvm::join(llvm::map_range(steps, [](const KernelStep &s) { return toString(s.kind); }),
                    "_");
}

unsigned KernelTable::intern(KernelSpec spec) {
  auto [it, isNew] = indexOfKey.try_emplace(spec.key(), specs.size());
  if (isNew) {
    spec.name = spec.stepNames();
    if (unsigned n = ++uses[spec.name]; n > 1)
      spec.name += "_" + std::to_string(n);
    specs.push_back(std::move(spec));
  }
  return it->second;
}
