//===- CallBridge.cpp - plan.call and the runtime's call registry ---------===//
#include "moira/Dialect/Plan/IR/CallBridge.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

fb::DType plan::toDType(Type type) {
  if (type.isBF16())
    return fb::DType::bf16;
  if (type.isF16())
    return fb::DType::f16;
  if (type.isF64())
    return fb::DType::f64;
  if (type.isInteger(32))
    return fb::DType::i32;
  if (type.isInteger(64))
    return fb::DType::i64;
  return type.isF32() ? fb::DType::f32 : fb::DType::u8;
}

Type plan::fromDType(fb::DType dtype, MLIRContext *context) {
  Builder builder(context);
  switch (dtype) {
  case fb::DType::f32:
    return builder.getF32Type();
  case fb::DType::bf16:
    return builder.getBF16Type();
  case fb::DType::f16:
    return builder.getF16Type();
  case fb::DType::f64:
    return builder.getF64Type();
  case fb::DType::i32:
    return builder.getI32Type();
  case fb::DType::i64:
    return builder.getI64Type();
  case fb::DType::u8:
    return IntegerType::get(context, 8, IntegerType::Unsigned);
  }
  return {};
}

static std::vector<rt::CallOperand> operandsOf(OperandRange views) {
  std::vector<rt::CallOperand> operands;
  for (Value view : views) {
    auto type = cast<ViewType>(view.getType());
    rt::CallOperand operand{toDType(type.getElementType()), {}};
    for (auto [i, size] : llvm::enumerate(type.getShape()))
      operand.shape.push_back({size, static_cast<int64_t>(i) == type.getBoundDim()});
    operands.push_back(std::move(operand));
  }
  return operands;
}

rt::Status plan::checkCallOp(CallOp op, const rt::CallDesc &call) {
  auto plan = op->getParentOfType<PlanOp>();
  auto program = op->getParentOfType<ProgramOp>();
  // Lists live here for as long as the parameters that point into them.
  std::vector<std::vector<uint8_t>> axisLists(op.getParams().size());
  std::vector<std::vector<double>> realLists(op.getParams().size());
  std::vector<rt::CallParam> params;
  for (auto [named, axes, reals] : llvm::zip(op.getParams(), axisLists, realLists)) {
    rt::CallParam param;
    param.name = std::string_view(named.getName().getValue());
    if (auto integer = dyn_cast<IntegerAttr>(named.getValue())) {
      param.kind = fb::ParamKind::integer;
      param.integer = integer.getInt();
    } else if (auto real = dyn_cast<FloatAttr>(named.getValue())) {
      param.kind = fb::ParamKind::real;
      param.real = real.getValueAsDouble();
    } else if (auto text = dyn_cast<StringAttr>(named.getValue())) {
      param.kind = fb::ParamKind::text;
      param.text = std::string_view(text.getValue());
    } else if (auto offset = dyn_cast<dist::OffsetAttr>(named.getValue())) {
      param.kind = fb::ParamKind::offset;
      param.integer = offset.getStride();
      // An unknown axis becomes a number that the check refuses.
      for (StringAttr axis : offset.getAxes())
        axes.push_back(static_cast<uint8_t>(plan.indexOfAxis(axis.getValue())));
      param.axes = axes;
    } else if (auto list = dyn_cast<ArrayAttr>(named.getValue())) {
      param.kind = fb::ParamKind::reals;
      for (auto real : list.getAsRange<FloatAttr>())
        reals.push_back(real.getValueAsDouble());
      param.reals = reals;
    } else {
      param.kind = fb::ParamKind::integers;
    }
    params.push_back(param);
  }
  std::vector<uint32_t> sizes(plan.getSizes().begin(), plan.getSizes().end());
  rt::CallEnv env;
  env.compute = program.getReference() ? fb::DType::f32 : toDType(plan.getInfo().getDtype());
  env.axisSizes = sizes;
  env.boundMax = program.boundMax();
  return rt::checkCall(call, operandsOf(op.getInputs()), operandsOf(op.getOutputs()), params, env);
}
