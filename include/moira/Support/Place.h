//===- Place.h - the part of a model that an operation belongs to -*- C++ -*-===//
// Locations name parts of a model ("model.layers.3.self_attn"), as its checkpoint does. Header
// only.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_SUPPORT_PLACE_H
#define MOIRA_SUPPORT_PLACE_H

#include "mlir/IR/Location.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include <cstdint>

namespace moira {

/// The part of the model that a location names; empty if it names none.
inline llvm::StringRef placeOf(mlir::Location loc) {
  if (auto named = llvm::dyn_cast<mlir::NameLoc>(loc))
    return named.getName();
  if (auto fused = llvm::dyn_cast<mlir::FusedLoc>(loc))
    for (mlir::Location part : fused.getLocations())
      if (llvm::StringRef place = placeOf(part); !place.empty())
        return place;
  return {};
}

/// "model.layers.3.self_attn" → "model.layers.3"; empty outside the layers.
inline llvm::StringRef layerPlaceOf(llvm::StringRef place) {
  constexpr llvm::StringRef kLayers = "layers.";
  size_t at = place.find(kLayers);
  if (at == llvm::StringRef::npos)
    return {};
  llvm::StringRef number = place.substr(at + kLayers.size()).split('.').first;
  bool isNumber = !number.empty() && llvm::all_of(number, llvm::isDigit);
  return isNumber ? place.take_front(at + kLayers.size() + number.size()) : llvm::StringRef();
}

/// The layer's number in such a name, or −1.
inline int64_t layerOf(llvm::StringRef place) {
  int64_t number = -1;
  if (layerPlaceOf(place).rsplit('.').second.getAsInteger(10, number))
    return -1;
  return number;
}

} // namespace moira

#endif // MOIRA_SUPPORT_PLACE_H
