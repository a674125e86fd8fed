//===- DiagnosticCollector.cpp - MLIR diagnostics as user errors ----------===//
#include "DiagnosticCollector.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/Location.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/raw_ostream.h"

using namespace mlir;
using namespace moira;
using rt::ErrorId;

/// "line 3:7 of FILE: " for text that the user wrote, "in model.layers.0.mlp: " for what the
/// importer made, nothing if unknown.
static std::string whereText(Location location) {
  if (auto file = dyn_cast<FileLineColLoc>(location))
    return (file.getFilename().getValue() + ":" + Twine(file.getLine()) + ":" +
            Twine(file.getColumn()) + ": ")
        .str();
  if (auto name = dyn_cast<NameLoc>(location))
    return ("in " + name.getName().getValue() + ": ").str();
  if (auto fused = dyn_cast<FusedLoc>(location); fused && !fused.getLocations().empty())
    return whereText(fused.getLocations().front());
  return "";
}

static std::optional<ErrorId> idOf(int number) {
  switch (number) {
#define MOIRA_ERROR(symbol, number, exitCode, title)                                               \
  case number:                                                                                     \
    return ErrorId::symbol;
#include "moira/rt/Errors.def"
  }
  return std::nullopt;
}

DiagnosticCollector::DiagnosticCollector(MLIRContext &context)
    : handler(&context, [this](Diagnostic &diagnostic) -> LogicalResult {
        std::string text = diagnostic.str();
        // MLIR's own note that prints the whole operation would bury the message.
        for (Diagnostic &note : diagnostic.getNotes())
          if (std::string words = note.str();
              !StringRef(words).starts_with("see current operation"))
            text += "; " + words;
        if (diagnostic.getSeverity() != DiagnosticSeverity::Error) {
          llvm::errs() << whereText(diagnostic.getLocation()) << text << "\n";
          return success();
        }
        // Ids stand at the start, or behind "'op' op " which emitOpError puts there.
        StringRef message = text;
        size_t start = message.find("MOE-");
        int number = 0;
        if (start != StringRef::npos && message.substr(start + 8, 2) == ": " &&
            !message.substr(start + 4, 4).getAsInteger(10, number))
          if (std::optional<ErrorId> id = idOf(number)) {
            std::string where = start == 0 ? "" : whereText(diagnostic.getLocation());
            errors.add(*id, where + message.take_front(start).str() +
                                message.drop_front(start + 10).str());
            return success();
          }
        errors.add(fallback, whereText(diagnostic.getLocation()) + text);
        return success();
      }) {}

rt::Status DiagnosticCollector::take() { return std::exchange(errors, {}); }
