//===- PassBody.cpp - Evaluating a linalg body on vectors -----------------===//
#include "PassBody.h"
#include "Lowering.h"
#include "mlir/Dialect/Affine/IR/AffineOps.h"
#include "mlir/Dialect/Affine/Utils.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/IRMapping.h"
#include "mlir/IR/Matchers.h"
#include "llvm/ADT/Sequence.h"

using namespace mlir;
using namespace moira::kernels;

std::vector<KernelFuncs> moira::kernels::getKernels(ModuleOp module) {
  std::vector<KernelFuncs> kernels;
  for (auto func : module.getOps<func::FuncOp>()) {
    auto name = func->getAttrOfType<StringAttr>(kKernelAttr);
    if (!name || kernels.empty() || kernels.back().name != name)
      kernels.push_back({name ? name : func.getSymNameAttr(), {}});
    kernels.back().parts.push_back(func);
  }
  return kernels;
}

/// Where the operands of a part stand among the kernel's.
static SmallVector<int64_t> operandNumbers(func::FuncOp part) {
  if (auto numbers = part->getAttrOfType<DenseI64ArrayAttr>(kOperandsAttr))
    return SmallVector<int64_t>(numbers.asArrayRef());
  return llvm::to_vector(llvm::seq<int64_t>(part.getNumArguments() - 1 + part.getNumResults()));
}

KernelSignature moira::kernels::getSignature(const KernelFuncs &kernel) {
  Builder b(kernel.name.getContext());
  NamedAttribute noalias = b.getNamedAttr("llvm.noalias", b.getUnitAttr());
  NamedAttribute readonly = b.getNamedAttr("llvm.readonly", b.getUnitAttr());
  KernelSignature signature;
  for (func::FuncOp part : kernel.parts)
    for (auto [i, number] : llvm::enumerate(operandNumbers(part))) {
      if (int64_t(signature.attributes.size()) <= number)
        signature.attributes.resize(number + 1);
      signature.attributes[number] = i < part.getNumArguments() - 1
                                         ? b.getDictionaryAttr({noalias, readonly})
                                         : b.getDictionaryAttr({noalias});
    }
  signature.types.assign(signature.attributes.size(), LLVM::LLVMPointerType::get(b.getContext()));
  signature.types.push_back(b.getI64Type());
  signature.attributes.push_back(b.getDictionaryAttr({}));
  return signature;
}

SmallVector<Value> moira::kernels::getOperands(func::FuncOp part, ValueRange arguments) {
  return llvm::map_to_vector(operandNumbers(part), [&](int64_t i) { return arguments[i]; });
}

KernelMemory moira::kernels::placeOperands(func::FuncOp func, ValueRange operands) {
  KernelMemory memory;
  Block &block = func.getBody().front();
  unsigned next = 0;
  for (Value tensor : block.getArguments().drop_back())
    memory.pointers[tensor] = operands[next++];
  for (Value tensor : block.getTerminator()->getOperands())
    memory.pointers[tensor] = operands[next++];
  return memory;
}

unsigned moira::kernels::getPointDims(func::FuncOp func) {
  return func->getAttrOfType<IntegerAttr>(kPointDimsAttr).getInt();
}

SmallVector<int64_t> moira::kernels::getLeadSizes(func::FuncOp func) {
  auto op = *func.getOps<linalg::GenericOp>().begin();
  SmallVector<int64_t> loops = op.getStaticLoopRanges();
  return SmallVector<int64_t>(loops.begin() + 1, loops.begin() + getPointDims(func));
}

//===----------------------------------------------------------------------===//
// Analysis
//===----------------------------------------------------------------------===//

PassBody::PassBody(linalg::GenericOp op, unsigned pointDims, KernelMemory &memory)
    : op(op), pointDims(pointDims), memory(memory) {
  llvm::append_range(tailSizes, ArrayRef<int64_t>(op.getStaticLoopRanges()).drop_front(pointDims));
  if (op.getNumReductionLoops())
    for (unsigned i = 0; i < op.getNumResults(); ++i)
      if (op.getIndexingMapMatchingResult(op->getResult(i)).getNumResults() == pointDims)
        sums.push_back(i);
}

PassBody::Access PassBody::access(OpOperand &operand) const {
  Value tensor = operand.get();
  if (op.isDpsInit(&operand))
    tensor = op->getResult(operand.getOperandNumber() - op.getNumDpsInputs());
  return {tensor, op.getMatchingIndexingMap(&operand)};
}

/// The add at the end of a sum's chain and the operand that is not the accumulator; null if it is
/// something else.
static std::pair<Operation *, Value> matchSum(linalg::GenericOp op, unsigned result) {
  Block *body = op.getBody();
  BlockArgument accumulator = body->getArgument(op.getNumDpsInputs() + result);
  auto add = body->getTerminator()->getOperand(result).getDefiningOp<arith::AddFOp>();
  if (!add || !accumulator.hasOneUse() || !add->hasOneUse())
    return {};
  if (add.getLhs() == accumulator)
    return {add, add.getRhs()};
  if (add.getRhs() == accumulator)
    return {add, add.getLhs()};
  return {};
}

bool PassBody::isContiguous(const Access &a) const {
  return !tailSizes.empty() && a.map.isFunctionOfDim(op.getNumLoops() - 1);
}

LogicalResult PassBody::check() {
  MLIRContext *context = op.getContext();
  if (ShapedType::isDynamicShape(tailSizes))
    return op.emitError("a pass needs static sizes behind the point's dims");
  for (OpOperand &operand : op->getOpOperands()) {
    Access a = access(operand);
    if (op.isDpsInput(&operand) && !memory.pointers.count(a.tensor) &&
        !(a.map.getNumResults() == pointDims && a.tensor.getDefiningOp<linalg::GenericOp>()))
      return op.emitError("a pass reads a tensor that has no memory");
    if (!isContiguous(a))
      continue;
    unsigned last = op.getNumLoops() - 1;
    AffineExpr rest = simplifyAffineExpr(
        a.map.getResults().back() - getAffineDimExpr(last, context), op.getNumLoops(), 0);
    if (rest.isFunctionOfDim(last) ||
        llvm::any_of(a.map.getResults().drop_back(),
                     [&](AffineExpr e) { return e.isFunctionOfDim(last); }))
      return op.emitError("a pass is not contiguous along the last dim");
  }
  for (auto [i, result] : llvm::enumerate(op->getResults())) {
    if (llvm::is_contained(sums, i)) {
      auto fill = op.getDpsInitOperand(i)->get().getDefiningOp<linalg::FillOp>();
      if (!fill || !matchPattern(fill.value(), m_AnyZeroFloat()) || !matchSum(op, i).first)
        return op.emitError("a reduction is not a sum from zero");
    } else if (!tailSizes.empty() && !memory.pointers.count(result)) {
      return op.emitError("a pass computes a tensor that has no memory");
    }
  }
  return success();
}

unsigned PassBody::alignedLanes(unsigned most) const {
  unsigned lanes = most;
  for (OpOperand &operand : op->getOpOperands()) {
    Access a = access(operand);
    if (!isContiguous(a))
      continue;
    int64_t last = cast<ShapedType>(operand.get().getType()).getShape().back();
    // The offset within the last dim (rope's halves, shifted reads) counts too: zero except in
    // `rest`.
    AffineExpr rest =
        a.map.getResults().back() - getAffineDimExpr(op.getNumLoops() - 1, op.getContext());
    int64_t shift = simplifyAffineExpr(rest, op.getNumLoops(), 0).getLargestKnownDivisor();
    while (lanes > 1 && (last % lanes || tailSizes.back() % lanes || shift % lanes))
      lanes /= 2;
  }
  return lanes;
}

unsigned PassBody::smallestElement() const {
  unsigned bits = 32;
  for (OpOperand &operand : op->getOpOperands())
    bits = std::min(bits, getElementTypeOrSelf(operand.get().getType()).getIntOrFloatBitWidth());
  return bits / 8;
}

unsigned PassBody::inputBytes(unsigned lanes) const {
  unsigned bits = 0;
  DenseSet<std::pair<Value, AffineMap>> counted;
  for (OpOperand *operand : op.getDpsInputOperands()) {
    Access a = access(*operand);
    if (!isa<BlockArgument>(a.tensor) || op.getMatchingBlockArgument(operand).use_empty() ||
        !counted.insert({a.tensor, a.map}).second)
      continue;
    bits += getElementTypeOrSelf(a.tensor.getType()).getIntOrFloatBitWidth() *
            (isContiguous(a) ? lanes : 1);
  }
  return bits / 8;
}

bool PassBody::readsAcrossElements(const DenseSet<Value> &stored) const {
  return llvm::any_of(op->getOpOperands(), [&](OpOperand &operand) {
    return op.isDpsInput(&operand) && stored.contains(operand.get()) &&
           isContiguous(access(operand)) && !op.getMatchingIndexingMap(&operand).isIdentity();
  });
}

//===----------------------------------------------------------------------===//
// Emission
//===----------------------------------------------------------------------===//

Value PassBody::address(OpBuilder &b, const Access &a, ArrayRef<Value> ivs) const {
  auto type = cast<RankedTensorType>(a.tensor.getType());
  AffineExpr offset = b.getAffineConstantExpr(0);
  int64_t stride = 1;
  for (int i = type.getRank() - 1; i >= 0; --i) {
    offset = offset + a.map.getResult(i) * stride;
    if (i > 0) // the first dim's size, perhaps dynamic, is no stride
      stride *= type.getDimSize(i);
  }
  Value index = affine::expandAffineExpr(b, op.getLoc(), offset, ivs, {});
  index = arith::IndexCastOp::create(b, op.getLoc(), b.getI64Type(), index);
  Value base = memory.pointers.lookup(a.tensor);
  return LLVM::GEPOp::create(b, op.getLoc(), base.getType(), type.getElementType(), base, index);
}

static unsigned alignmentOf(Type element, unsigned lanes, unsigned most) {
  unsigned bytes = element.getIntOrFloatBitWidth() / 8;
  return lanes == 1 ? bytes : std::max(bytes, std::min(lanes * bytes, most));
}

Value PassBody::load(OpBuilder &b, const Access &a, ArrayRef<Value> ivs, unsigned lanes,
                     unsigned alignment) const {
  Type type = getElementTypeOrSelf(a.tensor.getType());
  unsigned n = isContiguous(a) ? lanes : 1, align = alignmentOf(type, n, alignment);
  if (n > 1)
    type = VectorType::get(n, type);
  return LLVM::LoadOp::create(b, op.getLoc(), type, address(b, a, ivs), align);
}

static Value broadcast(OpBuilder &b, Location loc, Value v, unsigned lanes) {
  if (lanes == 1 || isa<VectorType>(v.getType()))
    return v;
  return vector::BroadcastOp::create(b, loc, VectorType::get(lanes, v.getType()), v);
}

void PassBody::store(OpBuilder &b, unsigned result, Value value, ArrayRef<Value> ivs,
                     unsigned lanes, unsigned alignment) const {
  Value tensor = op->getResult(result);
  if (!memory.pointers.count(tensor))
    return;
  Access a{tensor, op.getIndexingMapMatchingResult(op->getResult(result))};
  unsigned align = alignmentOf(getElementTypeOrSelf(tensor.getType()), lanes, alignment);
  LLVM::StoreOp::create(b, op.getLoc(), broadcast(b, op.getLoc(), value, lanes), address(b, a, ivs),
                        align);
}

void PassBody::loadInputs(OpBuilder &b, ArrayRef<Value> ivs, unsigned lanes, unsigned alignment,
                          Held &held) const {
  for (OpOperand *operand : op.getDpsInputOperands()) {
    Access a = access(*operand);
    if (!isa<BlockArgument>(a.tensor) || op.getMatchingBlockArgument(operand).use_empty())
      continue;
    Value &value = held[{a.tensor, a.map}];
    if (!value)
      value = load(b, a, ivs, lanes, alignment);
  }
}

SmallVector<Value> PassBody::emit(OpBuilder &b, ArrayRef<Value> ivs, unsigned lanes,
                                  unsigned alignment, Held *held) {
  Location loc = op.getLoc();
  Block *body = op.getBody();
  IRMapping mapping;
  for (OpOperand *operand : op.getDpsInputOperands()) {
    Access a = access(*operand);
    Value known = memory.scalars.lookup(a.tensor);
    if (!known && held)
      known = held->lookup({a.tensor, a.map});
    BlockArgument argument = op.getMatchingBlockArgument(operand);
    if (!argument.use_empty())
      mapping.map(argument, known ? known : load(b, a, ivs, lanes, alignment));
  }

  // Constants may have been moved out of the body.
  auto lookup = [&](Value v) {
    if (!mapping.contains(v))
      mapping.map(v, b.clone(*v.getDefiningOp())->getResult(0));
    return mapping.lookup(v);
  };
  DenseSet<Operation *> skipped;
  for (unsigned result : sums)
    skipped.insert(matchSum(op, result).first);
  for (Operation &inner : body->without_terminator()) {
    if (skipped.contains(&inner))
      continue;
    if (auto index = dyn_cast<linalg::IndexOp>(inner)) {
      mapping.map(index.getResult(), ivs[index.getDim()]);
      continue;
    }
    bool isVector = false;
    for (Value v : inner.getOperands())
      isVector |= isa<VectorType>(lookup(v).getType());
    if (isVector)
      for (Value v : inner.getOperands())
        mapping.map(v, broadcast(b, loc, lookup(v), lanes));
    Operation *clone = b.clone(inner, mapping);
    if (isVector)
      clone->getResult(0).setType(VectorType::get(lanes, inner.getResult(0).getType()));
  }

  SmallVector<Value> terms;
  for (auto [i, yielded] : llvm::enumerate(body->getTerminator()->getOperands())) {
    if (llvm::is_contained(sums, i)) {
      terms.push_back(broadcast(b, loc, lookup(matchSum(op, i).second), lanes));
      continue;
    }
    Value value = lookup(yielded);
    if (tailSizes.empty())
      memory.scalars[op->getResult(i)] = value;
    store(b, i, value, ivs, lanes, alignment);
    if (held)
      (*held)[{op->getResult(i), op.getIndexingMapMatchingResult(op->getResult(i))}] =
          broadcast(b, loc, value, lanes);
  }
  return terms;
}

void PassBody::finishSum(OpBuilder &b, unsigned i, Value total, ArrayRef<Value> pointIvs) {
  memory.scalars[op->getResult(sums[i])] = total;
  // The result's map covers the point's dims only; the others need values that nothing reads.
  SmallVector<Value> ivs(pointIvs);
  ivs.resize(op.getNumLoops(), pointIvs.front());
  store(b, sums[i], total, ivs, 1, 4);
}
