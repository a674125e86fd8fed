//===- LayerSpecs.cpp - what the layers of a stack differ in --------------===//
// Which layers are sparse, which see a sliding window, which are rotated; and operations that only
// long sequences need in some of them.
//===----------------------------------------------------------------------===//
#include "Meanings.h"
#include "moira/Import/ConfigJson.h"
#include "moira/Support/LayersText.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

using namespace llvm;
using namespace moira;
using rt::ErrorId;

namespace {

class LayerResolver : Meanings {
public:
  explicit LayerResolver(const Meanings &meanings) : Meanings(meanings) {}

  void resolve() {
    int64_t count = isNull("layers") ? size("layers_else") : size("layers");
    spec.layers.resize(count);
    int64_t step = sparseStep(count),
            first = isNull("sparse_first") ? step - 1 : int64_t(number("sparse_first"));
    spec.unusedLayers = size("unused_layers");
    int64_t least = number("first_sparse"), most = number("last_sparse");
    for (auto [l, layer] : enumerate(spec.layers))
      layer.sparse = spec.experts > 0 && step > 0 && int64_t(l) % step == first % step &&
                     int64_t(l) >= least && (most < 0 || int64_t(l) <= most);
    if (!isNull("sparse_layers")) {
      for (LayerSpec &layer : spec.layers)
        layer.sparse = false;
      listed("sparse_layers", [](LayerSpec &layer) { layer.sparse = true; });
    }
    listed("dense_layers", [](LayerSpec &layer) { layer.sparse = false; });
    windows();
    rotations();
  }

private:
  /// For each layer that the list names.
  void listed(StringRef meaning, function_ref<void(LayerSpec &)> visit) {
    const json::Array *array = get(meaning).getAsArray();
    if (!array)
      return;
    int64_t count = spec.layers.size();
    for (const json::Value &value : *array)
      if (int64_t l = value.getAsInteger().value_or(-1); l >= 0 && l < count)
        visit(spec.layers[l]);
      else
        fail(ErrorId::BadConfigValue, fieldOf(meaning) + " names layer " + jsonText(value) +
                                          ", the model has layers 0 to " + Twine(count - 1));
  }

  /// Layers without rotation; and what long sequences need in these and in the others (Llama 4).
  void rotations() {
    const json::Array *flags = get("rotated_layers").getAsArray();
    int64_t interval = number("rotated_interval");
    if (flags && !flags->empty() && flags->size() != spec.layers.size())
      return fail(ErrorId::BadConfigValue, fieldOf("rotated_layers") + " has " +
                                               Twine(flags->size()) + " entries, the model has " +
                                               Twine(spec.layers.size()) + " layers");
    std::set<int64_t> chunked, plain;
    const json::Array *types = isNull("chunk") ? nullptr : get("layer_types").getAsArray();
    for (auto [l, layer] : enumerate(spec.layers)) {
      if (flags && !flags->empty())
        layer.rotated = (*flags)[l].getAsInteger().value_or(1) != 0;
      else if (interval > 0)
        layer.rotated = (l + 1) % interval != 0;
      bool full = types && l < types->size() && (*types)[l].getAsString() == "full_attention";
      if (types ? !full : layer.rotated)
        chunked.insert(l);
      if (!layer.rotated)
        plain.insert(l);
    }
    if (types && types->size() != spec.layers.size())
      return fail(ErrorId::BadConfigValue, fieldOf("layer_types") + " has " + Twine(types->size()) +
                                               " entries, the model has " +
                                               Twine(spec.layers.size()) + " layers");
    if (!isNull("chunk") && !chunked.empty())
      needWhenLong(number("chunk"), "chunk", "attention within chunks", chunked);
    if (flag("temperature") && !plain.empty())
      needWhenLong(number("temperature_floor") - 1, "temperature_floor",
                   "queries scaled by their position", plain);
  }

  void needWhenLong(int64_t tokens, StringRef meaning, StringRef operation,
                    const std::set<int64_t> &layers) {
    std::string problem =
        (fileName + ": " + shown(meaning, get(meaning).getAsInteger().value_or(0)) +
         " needs an operation that Moira lacks for more than " + Twine(tokens) +
         " tokens: " + operation + ", in " + layersText(layers))
            .str();
    spec.longNeeds.push_back({tokens, problem});
  }

  /// Given, or from how many layers are sparse; 0: none is.
  int64_t sparseStep(int64_t count) const {
    if (!isNull("sparse_step"))
      return number("sparse_step");
    int64_t sparse = number("sparse_count");
    return sparse > 0 ? count / sparse : count;
  }

  void windows() {
    int64_t window = isNull("window") ? 0 : get("window").getAsInteger().value_or(0);
    bool typed = word("window_layers") == "typed";
    bool enabled = flag("window_enabled") && (typed || !isNull("window"));
    SmallVector<bool> slides(spec.layers.size(), enabled);
    if (typed)
      typedLayers(slides);
    if (!is_contained(slides, true))
      return;
    if (!enabled || window < 1)
      return fail(
          ErrorId::BadConfigValue,
          "layers with a sliding window need " +
              (fieldOf("window_enabled").empty() ? "" : fieldOf("window_enabled") + "=true and ") +
              fieldOf("window") + " of at least 1");
    for (auto [layer, slide] : zip(spec.layers, slides))
      layer.window = slide ? window : 0;
  }

  /// Which layers slide: layer_types where given, else every other layer below max_window_layers.
  void typedLayers(SmallVectorImpl<bool> &slides) {
    if (isNull("layer_types")) {
      int64_t limit = number("max_window_layers");
      for (auto [l, slide] : enumerate(slides))
        slide = slide && l % 2 == 0 && int64_t(l) < limit;
      return;
    }
    const json::Array &types = *get("layer_types").getAsArray();
    std::string field = fieldOf("layer_types");
    slides.assign(slides.size(), false);
    if (types.size() != slides.size())
      return fail(ErrorId::BadConfigValue, field + " has " + Twine(types.size()) +
                                               " entries, the model has " + Twine(slides.size()) +
                                               " layers");
    for (auto [l, type] : enumerate(types)) {
      StringRef name = *type.getAsString();
      slides[l] = name == "sliding_attention";
      if (!slides[l] && name != "full_attention")
        fail(ErrorId::UnsupportedConfig,
             field + "[" + Twine(l) + "]=" + jsonText(type) +
                 " is not supported; supported: full_attention, sliding_attention");
    }
  }
};

} // namespace

void moira::resolveLayers(const Meanings &meanings) { LayerResolver(meanings).resolve(); }
