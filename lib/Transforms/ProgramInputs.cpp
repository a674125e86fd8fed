//===- ProgramInputs.cpp - inputs that passes give to programs ------------===//
// See ProgramInputs.h.
//===----------------------------------------------------------------------===//
#include "ProgramInputs.h"

using namespace mlir;

Value moira::addInput(func::FuncOp func, StringRef name, Type type, std::optional<double> fill,
                      std::optional<InputRange> range) {
  Builder b(func.getContext());
  SmallVector<NamedAttribute> attributes{b.getNamedAttr("moe.name", b.getStringAttr(name))};
  if (fill)
    attributes.append({b.getNamedAttr("moe.optional", b.getUnitAttr()),
                       b.getNamedAttr("moe.fill", b.getF64FloatAttr(*fill))});
  if (range)
    attributes.push_back(
        b.getNamedAttr("moe.range", b.getDenseI64ArrayAttr({range->least, range->most})));
  unsigned index = func.getNumArguments();
  (void)func.insertArgument(index, type, b.getDictionaryAttr(attributes), func.getLoc());
  return func.getArgument(index);
}

Value moira::getInput(func::FuncOp func, StringRef name, Type type, double fill,
                      std::optional<InputRange> range) {
  for (BlockArgument argument : func.getArguments())
    if (auto own = func.getArgAttrOfType<StringAttr>(argument.getArgNumber(), "moe.name");
        own && own.getValue() == name)
      return argument;
  return addInput(func, name, type, fill, range);
}
