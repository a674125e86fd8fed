//===- Accounting.cpp - a checkpoint's tensors against the model's --------===//
#include "moira/Import/WeightTable.h"
#include "moira/rt/SafeTensors.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/GlobPattern.h"

using namespace llvm;
using namespace moira;
using rt::ErrorId;
using rt::quoteName;
using rt::shapeText;
using rt::Status;

namespace {

/// The names of a hostile config's model may be far more than any checkpoint has: counting stops
/// here.
constexpr size_t kCountLimit = 100'000;

/// Takes a number without leading zeros off `text`.
bool consumeNumber(StringRef &text, int64_t &number) {
  StringRef digits = text.take_while(isDigit);
  if (digits.empty() || (digits.size() > 1 && digits[0] == '0') || digits.getAsInteger(10, number))
    return false;
  text = text.drop_front(digits.size());
  return true;
}

/// Whether `name` is `pattern` for some layer and expert; sets `layer`.
bool matches(StringRef pattern, StringRef name, int64_t &layer) {
  while (!pattern.empty()) {
    size_t next = pattern.find('{');
    if (!name.consume_front(pattern.take_front(next)))
      return false;
    pattern = pattern.drop_front(std::min(next, pattern.size()));
    int64_t expert;
    if (pattern.consume_front("{l}") ? !consumeNumber(name, layer)
                                     : pattern.consume_front("{e}") && !consumeNumber(name, expert))
      return false;
  }
  return name.empty();
}

/// Problems of several kinds, so many of each shown that Status::str shows something of every kind.
class Problems {
public:
  void add(ErrorId id, std::string message) { byKind[id].push_back(std::move(message)); }
  size_t count(ErrorId id) const {
    auto it = byKind.find(id);
    return it == byKind.end() ? 0 : it->second.size();
  }
  bool stopped = false; // some problems were not even counted

  void report(Status &status) {
    size_t kinds = byKind.size();
    for (auto &[id, messages] : byKind) {
      size_t shown = std::min(messages.size(), kinds == 1 ? 19 : 20 / kinds - 1);
      if (messages.size() == shown + 1)
        ++shown; // rather than "1 more"
      for (std::string &message : MutableArrayRef(messages).take_front(shown))
        status.add(id, std::move(message));
      if (size_t rest = messages.size() - shown)
        status.add(id,
                   rt::format("%s%zu more tensors %s", stopped ? "at least " : "", rest, what(id)));
    }
  }

private:
  std::map<ErrorId, std::vector<std::string>> byKind;

  static const char *what(ErrorId id) {
    switch (id) {
    case ErrorId::MissingTensor:
      return "are missing";
    case ErrorId::ExtraTensor:
      return "are not used";
    case ErrorId::TensorShape:
      return "have a wrong shape";
    default:
      return "have a wrong type";
    }
  }
};

bool isWeightType(StringRef type) { return type == "F32" || type == "BF16" || type == "F16"; }

class Accountant {
public:
  Accountant(const ModelSpec &spec, ArrayRef<StoredTensor> stored) : spec(spec) {
    for (const StoredTensor &tensor : stored)
      byName[tensor.name] = &tensor;
  }

  void needed(const WeightState &state) {
    if (!state.isFirstPart()) // the first part has the same tensors
      return;
    for (int64_t e = 0, experts = state.perExpert ? spec.experts : 1; e < experts; ++e)
      for (const std::string &pattern : state.from) {
        if (problems.count(ErrorId::MissingTensor) >= kCountLimit) {
          problems.stopped = true;
          return;
        }
        check(state.perExpert ? expandName(pattern, state.layer, e) : pattern, state.diskShape);
      }
  }

  /// A tied head may be stored nevertheless; it is checked and not read.
  void tiedHead() {
    const std::string &name = spec.modelClass->tensors.at(WeightRole::head).from.front();
    if (byName.count(name)) {
      check(name, {spec.vocab, spec.hidden});
      unused.push_back(name);
    }
  }

  /// What no state takes. Tensors without an element (of no shared experts, say) say nothing.
  void rest(ArrayRef<StoredTensor> stored) {
    SmallVector<GlobPattern> known;
    for (const std::string &glob : spec.modelClass->unusedTensors)
      known.push_back(cantFail(GlobPattern::create(glob)));
    for (const StoredTensor &tensor : stored)
      if (seen.contains(tensor.name))
        continue;
      else if (is_contained(tensor.shape, 0) || inUnusedLayer(tensor.name) ||
               any_of(known, [&](const GlobPattern &glob) { return glob.match(tensor.name); }))
        unused.push_back(tensor.name);
      else
        problems.add(
            ErrorId::ExtraTensor,
            rt::format("%s holds %s %s, which the config (%s, %zu layers%s) has no use for",
                       tensor.file.c_str(), quoteName(tensor.name).c_str(),
                       shapeText(tensor.shape).c_str(), spec.modelClass->name.c_str(),
                       spec.allLayers(), spec.tiedHead ? ", tied head" : ""));
  }

  void report(Status &status) { problems.report(status); }

  std::vector<std::string> unused; // stored, and known to be read by nobody

private:
  const ModelSpec &spec;
  StringMap<const StoredTensor *> byName;
  StringSet<> seen;
  Problems problems;

  /// Layers behind the model's own (they predict tokens further ahead).
  bool inUnusedLayer(StringRef name) const {
    StringRef pattern = spec.modelClass->tensors.at(WeightRole::input_norm).state;
    int64_t number, count = spec.layers.size();
    return name.consume_front(pattern.take_front(pattern.find("{l}"))) &&
           consumeNumber(name, number) && name.starts_with(".") && number >= count &&
           number - count < spec.unusedLayers;
  }

  void check(const std::string &name, ArrayRef<int64_t> shape) {
    auto it = byName.find(name);
    if (it == byName.end())
      return problems.add(ErrorId::MissingTensor,
                          "missing tensor " + name + " " + shapeText(shape));
    const StoredTensor &tensor = *it->second;
    seen.insert(name);
    if (ArrayRef(tensor.shape) != shape)
      problems.add(ErrorId::TensorShape, tensor.file + ": " + name + " is " +
                                             shapeText(tensor.shape) + ", expected " +
                                             shapeText(shape));
    if (!isWeightType(tensor.type))
      problems.add(ErrorId::TensorDType, tensor.file + ": " + name + " is " + tensor.type +
                                             ", expected F32, BF16 or F16");
  }
};

} // namespace

/// Appends the layouts of one stack's layers, which messages number from `firstLayer` on.
static void detectStack(const ModelSpec &spec, ArrayRef<StoredTensor> stored, size_t firstLayer,
                        std::vector<unsigned> &result, Status &status) {
  const std::vector<ExpertLayout> &layouts = spec.modelClass->layouts;
  // example[l][layout]: a tensor that speaks for it.
  std::vector<std::map<unsigned, const StoredTensor *>> examples(spec.layers.size());
  for (const StoredTensor &tensor : stored)
    for (auto [number, layout] : enumerate(layouts))
      for (const auto &[role, patterns] : layout.from) {
        if (role == WeightRole::router)
          continue;
        for (const std::string &pattern : patterns) {
          int64_t l = -1;
          if (matches(pattern, tensor.name, l) && l >= 0 && l < int64_t(examples.size()) &&
              spec.layers[l].sparse)
            examples[l].try_emplace(number, &tensor);
        }
      }

  for (auto [l, found] : enumerate(examples)) {
    result.push_back(found.empty() ? 0 : found.begin()->first);
    if (found.size() > 1) {
      auto first = found.begin(), second = std::next(first);
      status.add(
          ErrorId::ExtraTensor,
          rt::format("layer %zu stores its experts in two ways: %s has %s (%s), %s has %s (%s); "
                     "keep one of them",
                     firstLayer + l, first->second->file.c_str(),
                     quoteName(first->second->name).c_str(), layouts[first->first].name.c_str(),
                     second->second->file.c_str(), quoteName(second->second->name).c_str(),
                     layouts[second->first].name.c_str()));
    }
  }
}

std::vector<unsigned> moira::detectLayouts(const ModelSpec &spec, ArrayRef<StoredTensor> stored,
                                           Status &status) {
  std::vector<unsigned> result;
  if (spec.encoder)
    detectStack(*spec.encoder, stored, 0, result, status);
  detectStack(spec, stored, result.size(), result, status);
  return result;
}

void moira::account(const ModelSpec &spec, const WeightTable &table, ArrayRef<StoredTensor> stored,
                    Status &status, std::vector<std::string> *unused) {
  Accountant accountant(spec, stored);
  for (const WeightState &state : table.states())
    accountant.needed(state);
  if (spec.tiedHead)
    accountant.tiedHead();
  accountant.rest(stored);
  accountant.report(status);
  if (unused)
    llvm::append_range(*unused, accountant.unused);
}
