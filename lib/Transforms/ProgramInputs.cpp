//===- ProgramInputs.cpp - inputs that passes give to programs ------------===//
// See ProgramInputs.h.
//===----------------------------------------------------------------------===//
#include "ProgramInputs.h"

#include <algorithm>

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

/// Lets an input that is there already take only what lies in `range` too.
static void narrow(func::FuncOp func, unsigned index, moira::InputRange range) {
  Builder b(func.getContext());
  if (auto own = func.getArgAttrOfType<DenseI64ArrayAttr>(index, "moe.range"))
    range = {std::max(own[0], range.least), std::min(own[1], range.most)};
  func.setArgAttr(index, "moe.range", b.getDenseI64ArrayAttr({range.least, range.most}));
  if (auto fill = func.getArgAttrOfType<FloatAttr>(index, "moe.fill"))
    func.setArgAttr(index, "moe.fill",
                    b.getF64FloatAttr(std::clamp(fill.getValueAsDouble(), double(range.least),
                                                 double(range.most))));
}

Value moira::getInput(func::FuncOp func, StringRef name, Type type, double fill,
                      std::optional<InputRange> range) {
  for (BlockArgument argument : func.getArguments())
    if (auto own = func.getArgAttrOfType<StringAttr>(argument.getArgNumber(), "moe.name");
        own && own.getValue() == name) {
      if (range)
        narrow(func, argument.getArgNumber(), *range);
      return argument;
    }
  return addInput(func, name, type, fill, range);
}
