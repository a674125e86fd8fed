//===- BuildLinalg.cpp - Kernel specs as linalg on tensors ----------------===//
//
// One linalg.generic per step (two for rms_norm, three for layer_norm). Iteration space: row,
// leading dims, then the dims of the step (RowLayout.h). Element types are those of the spec;
// arithmetic is f32 inside the bodies, so that rounding is where the spec says.
//
//===----------------------------------------------------------------------===//
#include "Lowering.h"
#include "RowLayout.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "mlir/IR/Verifier.h"
#include <cmath>

using namespace mlir;
using namespace moira::kernels;

void moira::kernels::loadKernelDialects(MLIRContext &context) {
  context.loadDialect<arith::ArithDialect, func::FuncDialect, gpu::GPUDialect, LLVM::LLVMDialect,
                      NVVM::NVVMDialect, linalg::LinalgDialect, math::MathDialect,
                      memref::MemRefDialect, scf::SCFDialect, tensor::TensorDialect,
                      vector::VectorDialect>();
}

static Type elementType(Builder &b, ScalarType type) {
  switch (type) {
  case ScalarType::F32:
    return b.getF32Type();
  case ScalarType::BF16:
    return b.getBF16Type();
  case ScalarType::F16:
    return b.getF16Type();
  case ScalarType::I32:
    return b.getI32Type();
  }
  llvm_unreachable("all types handled");
}

namespace {

/// Arithmetic on f32 scalars inside a body.
struct Scalar {
  OpBuilder &b;
  Location loc;

  Value constant(double v) { return arith::ConstantOp::create(b, loc, b.getF32FloatAttr(v)); }
  Value add(Value x, Value y) { return arith::AddFOp::create(b, loc, x, y); }
  Value sub(Value x, Value y) { return arith::SubFOp::create(b, loc, x, y); }
  Value mul(Value x, Value y) { return arith::MulFOp::create(b, loc, x, y); }
  Value div(Value x, Value y) { return arith::DivFOp::create(b, loc, x, y); }
  Value neg(Value x) { return arith::NegFOp::create(b, loc, x); }
  Value exp(Value x) { return math::ExpOp::create(b, loc, x); }
  Value select(Value c, Value x, Value y) { return arith::SelectOp::create(b, loc, c, x, y); }
  Value less(Value x, Value y) {
    return arith::CmpFOp::create(b, loc, arith::CmpFPredicate::OLT, x, y);
  }
  /// NaN stays.
  Value atLeast(Value x, double lo) { return select(less(x, constant(lo)), constant(lo), x); }
  Value atMost(Value x, double hi) { return select(less(constant(hi), x), constant(hi), x); }
  /// x * sigmoid(g)
  Value gate(Value x, Value g) { return div(x, add(constant(1), exp(neg(g)))); }

  Value toF32(Value v) {
    if (v.getType().isF32())
      return v;
    if (v.getType().isInteger())
      return arith::SIToFPOp::create(b, loc, b.getF32Type(), v);
    return arith::ExtFOp::create(b, loc, b.getF32Type(), v);
  }
  Value fromF32(Value v, Type type) {
    if (type.isF32())
      return v;
    if (type.isInteger())
      return arith::FPToSIOp::create(b, loc, type, v);
    return arith::TruncFOp::create(b, loc, type, v);
  }

  Value activate(Activation activation, Value x) {
    switch (activation) {
    case Activation::Silu:
      return gate(x, x);
    case Activation::Gelu: {
      Value erf = math::ErfOp::create(b, loc, mul(x, constant(0.70710678118654752)));
      return mul(mul(constant(0.5), x), add(constant(1), erf));
    }
    case Activation::GeluTanh: {
      // 0.5 (1 + tanh u) = sigmoid(2u), without cancellation for negative u.
      Value cube = mul(mul(x, x), x);
      Value u2 = mul(constant(2 * 0.79788456080286536), add(x, mul(constant(0.044715), cube)));
      return gate(x, u2);
    }
    case Activation::Relu:
      return select(less(x, constant(0)), constant(0), x);
    }
    llvm_unreachable("all activations handled");
  }
};

/// Builds the func of one spec.
class FuncBuilder {
public:
  FuncBuilder(OpBuilder &b, const KernelSpec &spec, const RowLayout &layout,
              ArrayRef<RowValue> values)
      : b(b), loc(NameLoc::get(b.getStringAttr(spec.name))), spec(spec), layout(layout),
        values(values) {}

  func::FuncOp build() {
    SmallVector<Type> arguments, returned;
    for (unsigned i = 0; i < spec.numInputs(); ++i)
      arguments.push_back(tensorType(i));
    arguments.push_back(b.getIndexType());
    for (unsigned v : spec.results)
      returned.push_back(tensorType(v));
    auto func = func::FuncOp::create(b, loc, spec.name, b.getFunctionType(arguments, returned));
    func->setAttr(kPointDimsAttr, b.getI64IntegerAttr(pointDims()));
    OpBuilder::InsertionGuard guard(b);
    Block *entry = func.addEntryBlock();
    b.setInsertionPointToStart(entry);
    rows = entry->getArguments().back();
    tensors.assign(entry->args_begin(), entry->args_end() - 1);
    for (const KernelStep &step : spec.steps)
      tensors.push_back(build(step, tensors.size()));
    SmallVector<Value> results;
    for (unsigned v : spec.results)
      results.push_back(tensors[v]);
    func::ReturnOp::create(b, loc, results);
    return func;
  }

private:
  using Body = llvm::function_ref<Value(Scalar &, ValueRange)>;

  unsigned pointDims() const { return 1 + layout.leadSizes.size(); }

  RankedTensorType tensorType(unsigned v) {
    SmallVector<int64_t> shape;
    if (values[v].rowwise)
      shape.push_back(ShapedType::kDynamic);
    llvm::append_range(shape, layout.shapes[v]);
    return RankedTensorType::get(shape, elementType(b, values[v].type));
  }
  unsigned rank(unsigned v) { return tensorType(v).getRank(); }

  AffineExpr dim(unsigned i) { return b.getAffineDimExpr(i); }
  AffineMap map(unsigned dims, ArrayRef<AffineExpr> exprs) {
    return AffineMap::get(dims, 0, exprs, b.getContext());
  }
  SmallVector<AffineExpr> firstDims(unsigned n) {
    return llvm::map_to_vector(llvm::seq(n), [&](unsigned i) { return dim(i); });
  }
  /// Map of an operand that has the last dims of an iteration space of `dims` dims.
  AffineMap suffixMap(unsigned v, unsigned dims) {
    SmallVector<AffineExpr> exprs;
    if (values[v].rowwise)
      exprs.push_back(dim(0));
    unsigned tail = layout.shapes[v].size();
    for (unsigned i = dims - tail; i < dims; ++i)
      exprs.push_back(dim(i));
    return map(dims, exprs);
  }

  Value empty(RankedTensorType type) {
    return tensor::EmptyOp::create(b, loc, type, ValueRange{rows});
  }

  /// An op that computes every element of `type` from the operands at `maps`. Body arguments are
  /// f32.
  Value elementwise(RankedTensorType type, ValueRange operands, ArrayRef<AffineMap> maps,
                    Body body) {
    unsigned n = type.getRank();
    SmallVector<AffineMap> all(maps);
    all.push_back(b.getMultiDimIdentityMap(n));
    SmallVector<utils::IteratorType> iterators(n, utils::IteratorType::parallel);
    return linalg::GenericOp::create(
               b, loc, TypeRange{type}, operands, ValueRange{empty(type)}, all, iterators,
               [&](OpBuilder &inner, Location l, ValueRange args) {
                 Scalar s{inner, l};
                 SmallVector<Value> wide;
                 for (Value a : args.drop_back())
                   wide.push_back(s.toF32(a));
                 Value result = s.fromF32(body(s, wide), type.getElementType());
                 linalg::YieldOp::create(inner, l, result);
               })
        .getResult(0);
  }

  /// Σ term(x, others…) over all dims behind the point's; the others have one element per point.
  Value sumOver(Value x, ValueRange others, Body term) {
    unsigned n = cast<RankedTensorType>(x.getType()).getRank(), p = pointDims();
    SmallVector<int64_t> shape{ShapedType::kDynamic};
    llvm::append_range(shape, layout.leadSizes);
    auto type = RankedTensorType::get(shape, b.getF32Type());
    Value zero = arith::ConstantOp::create(b, loc, b.getF32FloatAttr(0));
    Value init = linalg::FillOp::create(b, loc, zero, empty(type)).getResult(0);
    SmallVector<utils::IteratorType> iterators(p, utils::IteratorType::parallel);
    iterators.resize(n, utils::IteratorType::reduction);
    SmallVector<Value> inputs{x};
    llvm::append_range(inputs, others);
    SmallVector<AffineMap> maps(inputs.size() + 1, map(n, firstDims(p)));
    maps.front() = b.getMultiDimIdentityMap(n);
    return linalg::GenericOp::create(
               b, loc, TypeRange{type}, inputs, ValueRange{init}, maps, iterators,
               [&](OpBuilder &inner, Location l, ValueRange args) {
                 Scalar s{inner, l};
                 SmallVector<Value> wide;
                 for (Value a : args.drop_back())
                   wide.push_back(s.toF32(a));
                 linalg::YieldOp::create(inner, l, s.add(args.back(), term(s, wide)));
               })
        .getResult(0);
  }

  Value sumOfSquares(Value x) {
    return sumOver(x, {}, [](Scalar &s, ValueRange v) { return s.mul(v[0], v[0]); });
  }

  Value normalise(unsigned result, unsigned x, Value ss, unsigned w, double count, double eps) {
    unsigned n = rank(x);
    AffineMap identity = b.getMultiDimIdentityMap(n);
    return elementwise(
        tensorType(result), {tensors[x], ss, tensors[w]},
        {identity, map(n, firstDims(pointDims())), suffixMap(w, n)}, [&](Scalar &s, ValueRange v) {
          Value mean = s.div(v[1], s.constant(count));
          Value root = math::SqrtOp::create(s.b, s.loc, s.add(mean, s.constant(eps)));
          Value scaled = s.mul(v[0], s.div(s.constant(1), root));
          return s.mul(scaled, v[2]);
        });
  }

  /// Two sums, the second one of distances from the mean: no cancellation.
  Value layerNorm(const KernelStep &step, unsigned result) {
    unsigned x = step.args[0], w = step.args[1], n = rank(x);
    double count = 1;
    for (int64_t d : values[w].shape)
      count *= d;
    auto distance = [&](Scalar &s, Value v, Value sum) {
      return s.sub(v, s.div(sum, s.constant(count)));
    };
    Value sum = sumOver(tensors[x], {}, [](Scalar &, ValueRange v) { return v[0]; });
    Value squares = sumOver(tensors[x], {sum}, [&](Scalar &s, ValueRange v) {
      Value d = distance(s, v[0], v[1]);
      return s.mul(d, d);
    });
    AffineMap point = map(n, firstDims(pointDims()));
    SmallVector<Value> operands{tensors[x], sum, squares, tensors[w]};
    SmallVector<AffineMap> maps{b.getMultiDimIdentityMap(n), point, point, suffixMap(w, n)};
    if (step.args.size() > 2) {
      operands.push_back(tensors[step.args[2]]);
      maps.push_back(suffixMap(step.args[2], n));
    }
    return elementwise(tensorType(result), operands, maps, [&](Scalar &s, ValueRange v) {
      Value variance = s.div(v[2], s.constant(count));
      Value root = math::SqrtOp::create(s.b, s.loc, s.add(variance, s.constant(step.eps)));
      Value scaled = s.mul(s.mul(distance(s, v[0], v[1]), s.div(s.constant(1), root)), v[3]);
      return v.size() > 4 ? s.add(scaled, v[4]) : scaled;
    });
  }

  Value rope(const KernelStep &step, unsigned result) {
    unsigned x = step.args[0], n = rank(x);
    int64_t groups = layout.shapes[x].back() == layout.split ? *(layout.shapes[x].end() - 2) : 0;
    int64_t quarter = layout.shapes[step.args[1]][1]; // groups of one half
    AffineExpr j = dim(n - 2), i = dim(n - 1);
    SmallVector<AffineExpr> partner = firstDims(n);
    partner[n - 2] = (j + quarter) % (2 * quarter);
    auto tableMap = [&](unsigned v) {
      SmallVector<AffineExpr> exprs;
      if (values[v].rowwise)
        exprs.push_back(dim(0));
      llvm::append_range(exprs, ArrayRef<AffineExpr>{dim(1), j % quarter, i});
      return map(n, exprs);
    };
    return elementwise(
        tensorType(result), {tensors[x], tensors[x], tensors[step.args[1]], tensors[step.args[2]]},
        {b.getMultiDimIdentityMap(n), map(n, partner), tableMap(step.args[1]),
         tableMap(step.args[2])},
        [&](Scalar &s, ValueRange v) {
          Value group = linalg::IndexOp::create(s.b, s.loc, n - 2);
          auto below = [&](int64_t bound) -> Value {
            Value limit = arith::ConstantIndexOp::create(s.b, s.loc, bound);
            return arith::CmpIOp::create(s.b, s.loc, arith::CmpIPredicate::ult, group, limit);
          };
          Value sin = s.select(below(quarter), s.neg(v[3]), v[3]);
          Value turned = s.add(s.mul(v[0], v[2]), s.mul(v[1], sin));
          return groups == 2 * quarter ? turned : s.select(below(2 * quarter), turned, v[0]);
        });
  }

  static Value gatedProduct(Scalar &s, const KernelStep &step, Value gate, Value up) {
    if (std::isfinite(step.limit)) {
      gate = s.atMost(gate, step.limit);
      up = s.atMost(s.atLeast(up, -step.limit), step.limit);
    }
    if (step.upShift != 0)
      up = s.add(up, s.constant(step.upShift));
    Value activated = step.alpha == 1 ? s.activate(step.activation, gate)
                                      : s.gate(gate, s.mul(gate, s.constant(step.alpha)));
    return s.mul(activated, up);
  }

  Value build(const KernelStep &step, unsigned result) {
    unsigned x = step.args[0], n = rank(x);
    RankedTensorType type = tensorType(result);
    AffineMap identity = b.getMultiDimIdentityMap(n);
    switch (step.kind) {
    case StepKind::RmsNorm: {
      double count = 1;
      for (int64_t d : values[step.args[1]].shape)
        count *= d;
      return normalise(result, x, sumOfSquares(tensors[x]), step.args[1], count, step.eps);
    }
    case StepKind::LayerNorm:
      return layerNorm(step, result);
    case StepKind::SumSquares:
      return sumOfSquares(tensors[x]);
    case StepKind::RmsApply:
      return normalise(result, x, tensors[step.args[1]], step.args[2], step.count, step.eps);
    case StepKind::Add:
      return elementwise(type, {tensors[x], tensors[step.args[1]]},
                         {identity, suffixMap(step.args[1], n)},
                         [](Scalar &s, ValueRange v) { return s.add(v[0], v[1]); });
    case StepKind::Scale:
      return elementwise(type, {tensors[x]}, {identity}, [&](Scalar &s, ValueRange v) {
        return s.mul(v[0], s.constant(step.factor));
      });
    case StepKind::Clamp:
      return elementwise(type, {tensors[x]}, {identity}, [&](Scalar &s, ValueRange v) {
        return s.atMost(s.atLeast(v[0], step.lo), step.hi);
      });
    case StepKind::Act:
      return elementwise(type, {tensors[x]}, {identity}, [&](Scalar &s, ValueRange v) {
        return s.activate(step.activation, v[0]);
      });
    case StepKind::Glu: {
      unsigned m = n - 1; // iteration dims: those of the result
      auto half = [&](int64_t which) {
        SmallVector<AffineExpr> exprs = firstDims(m);
        exprs.insert(exprs.end() - 1, b.getAffineConstantExpr(which));
        return map(m, exprs);
      };
      return elementwise(
          type, {tensors[x], tensors[x]}, {half(0), half(1)},
          [&](Scalar &s, ValueRange v) { return gatedProduct(s, step, v[0], v[1]); });
    }
    case StepKind::SigmoidGate: {
      SmallVector<AffineExpr> exprs = firstDims(n);
      exprs.back() = b.getAffineConstantExpr(0);
      return elementwise(type, {tensors[x], tensors[step.args[1]]}, {identity, map(n, exprs)},
                         [](Scalar &s, ValueRange v) { return s.gate(v[0], v[1]); });
    }
    case StepKind::Rope:
      return rope(step, result);
    case StepKind::Cast:
      return elementwise(type, {tensors[x]}, {identity},
                         [](Scalar &, ValueRange v) { return v[0]; });
    }
    llvm_unreachable("all kinds handled");
  }

  OpBuilder &b;
  Location loc;
  const KernelSpec &spec;
  const RowLayout &layout;
  ArrayRef<RowValue> values;
  Value rows;
  SmallVector<Value> tensors; // by value number
};

} // namespace

llvm::Expected<OwningOpRef<ModuleOp>> moira::kernels::buildLinalg(MLIRContext &context,
                                                                  ArrayRef<KernelSpec> kernels) {
  OpBuilder b(&context);
  OwningOpRef<ModuleOp> module = ModuleOp::create(b.getUnknownLoc());
  b.setInsertionPointToStart(module->getBody());
  for (const KernelSpec &spec : kernels) {
    auto fail = [&](llvm::Error e) {
      return llvm::createStringError("kernel '%s': %s", spec.name.c_str(),
                                     llvm::toString(std::move(e)).c_str());
    };
    auto values = spec.infer();
    if (!values)
      return fail(values.takeError());
    std::vector<KernelPart> parts = partsOf(spec);
    for (const KernelPart &part : parts) {
      auto own = part.spec.infer();
      if (!own)
        return fail(own.takeError());
      auto layout = RowLayout::get(part.spec, *own);
      if (!layout)
        return fail(layout.takeError());
      func::FuncOp func = FuncBuilder(b, part.spec, *layout, *own).build();
      if (parts.size() == 1)
        continue;
      func->setAttr(kKernelAttr, b.getStringAttr(spec.name));
      func->setAttr(kOperandsAttr, b.getDenseI64ArrayAttr(SmallVector<int64_t>(
                                       part.operands.begin(), part.operands.end())));
    }
  }
  if (failed(verify(*module)))
    return llvm::createStringError("the kernels' linalg form is invalid");
  return module;
}
