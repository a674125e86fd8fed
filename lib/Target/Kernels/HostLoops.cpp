//===- HostLoops.cpp - Row loops for the host -----------------------------===//
//
// One loop nest over rows and leading dims for each part of a kernel; inside it each pass runs over
// the tail: vectors of `width` lanes, then single elements. Sums keep several vector accumulators,
// which are added in a fixed order, so that results do not depend on anything but the shape.
//
//===----------------------------------------------------------------------===//
#include "Lowering.h"
#include "PassBody.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace moira::kernels;

/// Vector accumulators per sum: covers the latency of an FMA.
static constexpr unsigned kAccumulators = 4;

namespace {

class HostPass {
public:
  HostPass(OpBuilder &b, Location loc, PassBody &pass, unsigned width)
      : b(b), loc(loc), pass(pass), width(width), unroll(pass.numSums() ? kAccumulators : 1) {}

  void emit(ArrayRef<Value> point) {
    ivs.assign(point.begin(), point.end());
    if (pass.tail().empty()) {
      pass.emit(b, ivs, 1, 1);
      return;
    }
    SmallVector<Value> sums = emitDim(0, zeros());
    ivs.resize(point.size());
    for (unsigned i = 0; i < pass.numSums(); ++i)
      pass.finishSum(b, i, total(ArrayRef(sums).slice(i * perSum(), perSum())), point);
  }

private:
  /// Accumulators of one sum: `unroll` vectors, then one scalar.
  unsigned perSum() const { return unroll + 1; }

  Value constant(int64_t v) { return arith::ConstantIndexOp::create(b, loc, v); }

  SmallVector<Value> zeros() {
    SmallVector<Value> values;
    auto vector = VectorType::get(width, b.getF32Type());
    for (unsigned i = 0; i < pass.numSums() * perSum(); ++i) {
      if (i % perSum() < unroll)
        values.push_back(arith::ConstantOp::create(b, loc, b.getZeroAttr(vector)));
      else
        values.push_back(arith::ConstantOp::create(b, loc, b.getF32FloatAttr(0)));
    }
    return values;
  }

  Value add(Value x, Value y) { return arith::AddFOp::create(b, loc, x, y); }

  Value total(ArrayRef<Value> accumulators) {
    SmallVector<Value> left(accumulators.drop_back());
    for (unsigned n = left.size(); n > 1; n /= 2)
      for (unsigned i = 0; i < n / 2; ++i)
        left[i] = add(left[i], left[i + n / 2]);
    Value horizontal = vector::ReductionOp::create(b, loc, vector::CombiningKind::ADD, left[0],
                                                   arith::FastMathFlags::reassoc);
    return add(horizontal, accumulators.back());
  }

  /// scf.for over [from, to) that hands the accumulators through.
  SmallVector<Value> loop(int64_t from, int64_t to, int64_t step, SmallVector<Value> accumulators,
                          llvm::function_ref<SmallVector<Value>(Value, SmallVector<Value>)> body) {
    if (from >= to)
      return accumulators;
    auto forOp =
        scf::ForOp::create(b, loc, constant(from), constant(to), constant(step), accumulators);
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(forOp.getBody());
    SmallVector<Value> next =
        body(forOp.getInductionVar(), SmallVector<Value>(forOp.getRegionIterArgs()));
    if (!next.empty()) {
      scf::YieldOp::create(b, loc, next);
    }
    return SmallVector<Value>(forOp.getResults());
  }

  /// `lanes` elements at `iv` of the last dim, added to accumulator `slot` of each sum.
  void element(Value iv, unsigned lanes, unsigned slot, SmallVector<Value> &accumulators) {
    ivs.push_back(iv);
    SmallVector<Value> terms = pass.emit(b, ivs, lanes, 1);
    ivs.pop_back();
    for (auto [i, term] : llvm::enumerate(terms)) {
      Value &accumulator = accumulators[i * perSum() + slot];
      accumulator = add(accumulator, term);
    }
  }

  SmallVector<Value> emitDim(unsigned dim, SmallVector<Value> accumulators) {
    int64_t size = pass.tail()[dim];
    if (dim + 1 < pass.tail().size())
      return loop(0, size, 1, accumulators, [&](Value iv, SmallVector<Value> inner) {
        ivs.push_back(iv);
        inner = emitDim(dim + 1, inner);
        ivs.pop_back();
        return inner;
      });
    int64_t block = int64_t(width) * unroll;
    int64_t blocks = size / block * block, vectors = size / width * width;
    accumulators = loop(0, blocks, block, accumulators, [&](Value iv, SmallVector<Value> inner) {
      for (unsigned u = 0; u < unroll; ++u)
        element(u ? arith::AddIOp::create(b, loc, iv, constant(u * width)).getResult() : iv, width,
                u, inner);
      return inner;
    });
    for (int64_t at = blocks; at < vectors; at += width)
      element(constant(at), width, (at - blocks) / width, accumulators);
    return loop(vectors, size, 1, accumulators, [&](Value iv, SmallVector<Value> inner) {
      element(iv, 1, unroll, inner);
      return inner;
    });
  }

  OpBuilder &b;
  Location loc;
  PassBody &pass;
  unsigned width, unroll;
  SmallVector<Value> ivs; // of the dims entered so far
};

} // namespace

/// The loops of one part of a kernel.
static LogicalResult emitPart(OpBuilder &b, func::FuncOp part, ValueRange arguments,
                              unsigned width) {
  Location loc = part.getLoc();
  KernelMemory memory = placeOperands(part, getOperands(part, arguments));
  Value zero = arith::ConstantIndexOp::create(b, loc, 0);
  Value one = arith::ConstantIndexOp::create(b, loc, 1);
  Value rows = arith::IndexCastOp::create(b, loc, b.getIndexType(), arguments.back());
  OpBuilder::InsertionGuard guard(b);
  SmallVector<Value> point;
  auto enter = [&](Value size) {
    auto forOp = scf::ForOp::create(b, loc, zero, size, one);
    b.setInsertionPointToStart(forOp.getBody());
    point.push_back(forOp.getInductionVar());
  };
  enter(rows);
  for (int64_t size : getLeadSizes(part))
    enter(arith::ConstantIndexOp::create(b, loc, size));

  for (auto op : part.getOps<linalg::GenericOp>()) {
    PassBody pass(op, getPointDims(part), memory);
    if (failed(pass.check()))
      return failure();
    HostPass(b, loc, pass, width).emit(point);
  }
  return success();
}

static LogicalResult lowerKernel(const KernelFuncs &funcs, unsigned width) {
  OpBuilder b(func::FuncOp(funcs.parts.front()));
  Location loc = funcs.loc();
  KernelSignature signature = getSignature(funcs);
  auto kernel = func::FuncOp::create(b, loc, funcs.name, b.getFunctionType(signature.types, {}), {},
                                     signature.attributes);
  Block *entry = kernel.addEntryBlock();
  b.setInsertionPointToStart(entry);
  auto end = func::ReturnOp::create(b, loc);
  b.setInsertionPoint(end);
  for (func::FuncOp part : funcs.parts)
    if (failed(emitPart(b, part, entry->getArguments(), width)))
      return failure();
  for (func::FuncOp part : funcs.parts)
    part.erase();
  return success();
}

LogicalResult moira::kernels::lowerToHostLoops(ModuleOp module, unsigned width) {
  for (const KernelFuncs &kernel : getKernels(module))
    if (failed(lowerKernel(kernel, width)))
      return failure();
  return success();
}
