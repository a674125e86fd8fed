//===- KernelSpec.h - What a generated kernel computes ----------*- C++ -*-===//
//
// The neutral description of one generated kernel: operands, and a short list of steps over the
// values of one row. Whoever groups `moe` ops builds a KernelSpec; buildHostImage and buildPtx
// (KernelImage.h) turn specs into code. No MLIR here.
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TARGET_KERNELS_KERNELSPEC_H
#define MOIRA_TARGET_KERNELS_KERNELSPEC_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace moira::kernels {

enum class ScalarType : uint8_t { F32, BF16, F16, I32 };

/// "f32", "bf16", "f16", "i32".
llvm::StringRef toString(ScalarType type);
/// Bytes of one element.
unsigned byteSize(ScalarType type);

enum class Activation : uint8_t { Silu, Gelu, GeluTanh, Relu };

/// "silu", "gelu", "gelu_tanh", "relu": the names that `moe.glu`, `moe.act` and Calls.def use.
llvm::StringRef toString(Activation activation);

/// A pointer argument of the kernel `void k(void *op0, …, void *opN, int64_t rows)`. Rowwise:
/// `rows` consecutive blocks of shape `inner`, C order. Otherwise: one block of shape `inner`, the
/// same for all rows. Pointers are aligned to 16 bytes at least. No output overlaps any other
/// operand; inputs may overlap each other.
struct KernelOperand {
  ScalarType type = ScalarType::F32;
  llvm::SmallVector<int64_t, 4> inner;
  bool rowwise = true;
  bool output = false;
  bool operator==(const KernelOperand &) const = default;
};

/// What a step computes. Shapes are those of one row (the inner shapes); a scalar per row has shape
/// []. The first argument is always rowwise. Arithmetic and reductions are f32; the result is
/// rounded once to the step's type.
enum class StepKind : uint8_t {
  RmsNorm, // (x[..,N..], w[N..]; eps)             x * rsqrt(mean(x²) + eps) * w, over the dims of w
  LayerNorm, // (x[..,N..], w[N..], b[N..]?; eps)  (x - mean) * rsqrt(mean((x - mean)²) + eps) * w +
             // b
  SumSquares, // (x[..,N..]; normDims)                [..], Σ x² over the last normDims dims
  RmsApply,   // (x[..,N..], ss[..], w[N..]; eps, count)  x * rsqrt(ss / count + eps) * w
  Add, // (a[..,N..], b[N..])                  b rowwise or shared; its shape is a suffix of a's (or
       // all of it)
  Scale, // (x; factor)                          x * factor
  Clamp, // (x; lo, hi)                          min(max(x, lo), hi), NaN stays
  Act,   // (x; activation)                      act(x)
  Glu,   // (x[..,2,F]; activation, limit, alpha, upShift)  [..,F] = act(x[..,0,:]) * x[..,1,:],
         // or its clamped form: act_α(min(g, limit)) * (clamp(u, ±limit) + upShift)
  SigmoidGate, // (x[..,D], g[..,1])                   x * σ(g)
  Rope, // (x[S,H,d], cos[S,r], sin[S,r])       rotate-half of dims i, i+r (i < r); dims from 2r on
        // stay. 2r <= d.
  Cast  // (x)                                  x in the step's type
};

/// "rms_norm", "sum_squares", …: the name of the moe op.
llvm::StringRef toString(StepKind kind);

/// One step. `args` are value numbers: the input operands first, in operand order, then the results
/// of the steps in order.
struct KernelStep {
  StepKind kind = StepKind::Cast;
  llvm::SmallVector<unsigned, 3> args;
  ScalarType type = ScalarType::F32; // of the result
  double eps = 0, lo = 0, hi = 0, factor = 1;
  double limit = std::numeric_limits<double>::infinity(), alpha = 1, upShift = 0; // of Glu
  int64_t count = 0;
  unsigned normDims = 0;
  Activation activation = Activation::Silu;
  bool operator==(const KernelStep &) const = default;
};

/// Type and shape of a value of the spec.
struct RowValue {
  ScalarType type = ScalarType::F32;
  llvm::SmallVector<int64_t, 4> shape;
  bool rowwise = true;
};

/// One kernel. Built like this (fused residual add and norm; operands: x, r, w, then sum and
/// normed):
///
///   KernelSpec k;
///   unsigned x = k.input(ScalarType::F32, {4096}), r = k.input(ScalarType::F32, {4096});
///   unsigned w = k.shared(ScalarType::F32, {4096});
///   unsigned sum = k.add(x, r);
///   k.output(sum);
///   k.output(k.rmsNorm(sum, w, 1e-5));
///
/// All inputs are declared before the first step. The step builders give the result the type of
/// their first argument (SumSquares: f32); `back().type` can be changed afterwards. Nothing is
/// checked while building: call infer().
struct KernelSpec {
  std::string name;                    // symbol in the image; no part of key()
  std::vector<KernelOperand> operands; // inputs, then outputs
  std::vector<KernelStep> steps;
  llvm::SmallVector<unsigned, 4> results; // value number of each output operand

  unsigned input(ScalarType type, llvm::ArrayRef<int64_t> inner);  // rowwise
  unsigned shared(ScalarType type, llvm::ArrayRef<int64_t> inner); // one for all rows
  /// Adds an output operand for the result of a step; returns its operand number.
  unsigned output(unsigned value);

  unsigned rmsNorm(unsigned x, unsigned w, double eps);
  unsigned layerNorm(unsigned x, unsigned w, std::optional<unsigned> b, double eps);
  unsigned sumSquares(unsigned x, unsigned normDims);
  unsigned rmsApply(unsigned x, unsigned ss, unsigned w, double eps, int64_t count);
  unsigned add(unsigned a, unsigned b);
  unsigned scale(unsigned x, double factor);
  unsigned clamp(unsigned x, double lo, double hi);
  unsigned act(unsigned x, Activation activation);
  unsigned glu(unsigned x, Activation activation);
  unsigned sigmoidGate(unsigned x, unsigned gate);
  unsigned rope(unsigned x, unsigned cos, unsigned sin);
  unsigned cast(unsigned x, ScalarType type);
  KernelStep &back() { return steps.back(); }

  unsigned numInputs() const;

  /// Types and shapes of all values (inputs, then steps), or an error that says what is wrong. A
  /// spec is valid if this succeeds: every step's operands fit, every output is the result of a
  /// step and named once, and in each part all reductions are over the same leading dims (a row
  /// norm over [H,d] cannot be fused with one over [d]), and the result of a reduction, rope or glu
  /// is fusable where it is used.
  llvm::Expected<std::vector<RowValue>> infer() const;

  /// Canonical text of everything but the name. Equal keys: equal code. Also what parseKernelSpec
  /// reads.
  std::string key() const;

  /// Name made of the steps, e.g. "add_rms_norm".
  std::string stepNames() const;
};

/// Steps of a kernel that have no value but shared inputs in common with its other steps, as a spec
/// of their own. `operands`: where each of its operands stands among the whole kernel's.
struct KernelPart {
  KernelSpec spec;
  llvm::SmallVector<unsigned> operands;
};

/// The parts of a spec whose steps fit their operands, in the order of their first steps; most
/// kernels have one. They may cut their rows differently.
std::vector<KernelPart> partsOf(const KernelSpec &spec);

/// Reads the text form, one clause a `;` or line:
///
///   in f32[4096]; shared f32[4096]; v2 = rms_norm v0 v1 eps=1e-5 : f32; out v2
///
/// Comments start with `#`.
llvm::Expected<KernelSpec> parseKernelSpec(llvm::StringRef text);

/// The kernels of one plan, each once. Names are step names, with a number from the second kernel
/// with those steps on.
class KernelTable {
public:
  /// Index of the kernel equal to `spec`, which is added if there is none. `spec` must be valid.
  unsigned intern(KernelSpec spec);
  llvm::ArrayRef<KernelSpec> kernels() const { return specs; }

private:
  std::vector<KernelSpec> specs;
  llvm::StringMap<unsigned> indexOfKey;
  llvm::StringMap<unsigned> uses;
};

} // namespace moira::kernels
#endif
