//===- RopeConfig.cpp - what a config says about rotary embedding ---------===//
// Keys of rope_parameters (or rope_scaling) for each rope_type, and which of them are needed.
//===----------------------------------------------------------------------===//
#include "moira/Import/ConfigJson.h"
#include "moira/Import/RopeSpec.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

#include <cmath>
#include <map>

using namespace llvm;
using namespace moira;
using rt::ErrorId;
using rt::Status;

namespace {

using Scaling = RopeSpec::Scaling;

struct Type {
  StringRef name;
  Scaling scaling;
  std::vector<StringRef> keys; // besides those of every type
};

const std::vector<Type> &types() {
  static const std::vector<Type> all = {
      {"default", Scaling::none, {}},
      {"linear", Scaling::linear, {"factor"}},
      {"dynamic", Scaling::dynamic, {"factor", "original_max_position_embeddings"}},
      {"yarn",
       Scaling::yarn,
       {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate"}},
      {"longrope",
       Scaling::longrope,
       {"factor", "original_max_position_embeddings", "attention_factor", "short_factor",
        "long_factor"}},
      {"llama3",
       Scaling::llama3,
       {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}},
  };
  return all;
}

class Reader {
public:
  Reader(const RopeFields &fields, Status &status) : fields(fields), status(status) {}

  RopeSpec read() {
    RopeSpec spec;
    spec.theta = fields.theta;
    spec.positions = fields.positions.value_or(0);
    const Type *type = typeOf();
    if (!type)
      return spec;
    spec.scaling = type->scaling;
    typeName = type->name;
    checkKeys(*type);
    positive("rope_theta", spec.theta);
    double partial = fields.partial.value_or(1);
    positive("partial_rotary_factor", partial);
    spec.dim = static_cast<int64_t>(fields.headDim * partial);
    if (!fields.partial && partial != 1)
      fail(ErrorId::UnsupportedConfig, where("partial_rotary_factor") + "=" + number(partial) +
                                           " is not supported; supported: 1.0");
    else if (partial > 1 || spec.dim < 2 || spec.dim % 2 != 0)
      fail(ErrorId::BadConfigValue,
           "partial_rotary_factor=" + number(partial) + " of a head of " + Twine(fields.headDim) +
               " is not an even number of elements between 2 and the head's");
    if (type->scaling == Scaling::none)
      return spec;
    scaled(spec);
    return spec;
  }

private:
  const RopeFields &fields;
  Status &status;
  StringRef typeName;

  static std::string number(double value) { return rt::format("%g", value); }
  void fail(ErrorId id, const Twine &message) {
    status.add(id, (fields.fileName + ": " + message).str());
  }
  const json::Value *find(StringRef key) const {
    const json::Value *value = fields.parameters ? fields.parameters->get(key) : nullptr;
    return value && value->kind() != json::Value::Null ? value : nullptr;
  }
  std::string where(StringRef key) const { return fields.field + "." + key.str(); }

  const Type *typeOf() {
    std::string name = "default";
    for (StringRef key : {"type", "rope_type"})
      if (const json::Value *value = find(key)) {
        std::optional<StringRef> text = value->getAsString();
        if (!text) {
          fail(ErrorId::BadConfigValue, where(key) + "=" + jsonText(*value) + " is not a string");
          return nullptr;
        }
        name = *text == "su" ? "longrope" : text->str(); // its first name
      }
    for (const Type &type : types())
      if (type.name == name)
        return &type;
    fail(ErrorId::UnsupportedConfig,
         where("rope_type") + "=" + jsonText(json::Value(json::fixUTF8(name))) +
             " is not supported; supported: " +
             join(map_range(types(), [](const Type &type) { return type.name; }), ", "));
    return nullptr;
  }

  void checkKeys(const Type &type) {
    std::vector<StringRef> known = {"rope_theta", "rope_type", "type", "partial_rotary_factor"};
    append_range(known, type.keys);
    if (fields.ownFactors && type.scaling != Scaling::none)
      append_range(known, std::vector<StringRef>{"short_mscale", "long_mscale"});
    std::map<std::string, bool> unknown; // sorted
    if (fields.parameters)
      for (const auto &member : *fields.parameters)
        if (!is_contained(known, StringRef(member.first)))
          unknown[StringRef(member.first).str()];
    for (const auto &entry : unknown)
      fail(ErrorId::UnknownConfigField,
           "unknown field " + where(StringRef(entry.first).take_front(80)) + " for rope_type " +
               type.name + "; known: " + join(known, ", "));
  }

  /// Takes a number into `value` if the config has it.
  bool take(StringRef key, double &value, bool mustBePositive) {
    const json::Value *found = find(key);
    if (!found)
      return false;
    std::optional<double> n = found->getAsNumber();
    if (n && std::isfinite(*n) && (!mustBePositive || *n > 0))
      value = *n;
    else
      fail(ErrorId::BadConfigValue, where(key) + "=" + jsonText(*found) + " is not a " +
                                        (mustBePositive ? "positive " : "") + "number");
    return true;
  }
  bool positive(StringRef key, double &value) { return take(key, value, true); }
  void missing(StringRef key) {
    fail(ErrorId::MissingConfigField,
         fields.field + " lacks " + key + ", which rope_type " + typeName + " needs");
  }
  std::optional<double> optional(StringRef key) {
    double value = 0;
    return positive(key, value) ? std::optional(value) : std::nullopt;
  }

  /// One positive number a frequency.
  std::vector<double> divisors(StringRef key, int64_t count) {
    std::vector<double> out(count, 1.0);
    const json::Value *found = find(key);
    if (!found) {
      missing(key);
      return out;
    }
    const json::Array *array = found->getAsArray();
    bool good = array && static_cast<int64_t>(array->size()) == count;
    for (int64_t i = 0; good && i < count; ++i) {
      std::optional<double> n = (*array)[i].getAsNumber();
      good = n && std::isfinite(*n) && *n > 0;
      if (good)
        out[i] = *n;
    }
    if (!good)
      fail(ErrorId::BadConfigValue, where(key) + " is not a list of " + Twine(count) +
                                        " positive numbers, one for each pair of a head");
    return out;
  }

  void scaled(RopeSpec &spec) {
    bool haveFactor = positive("factor", spec.factor);
    // The field beside the object speaks first, as the published implementation has it.
    double inside = 0;
    bool haveInside = positive("original_max_position_embeddings", inside);
    spec.originalPositions = fields.originalPositions ? *fields.originalPositions
                             : haveInside             ? inside
                                                      : spec.positions;
    bool needsPositions = spec.scaling == Scaling::dynamic;
    switch (spec.scaling) {
    case Scaling::none:
    case Scaling::linear:
    case Scaling::dynamic:
      break;
    case Scaling::yarn:
      positive("beta_fast", spec.betaFast);
      positive("beta_slow", spec.betaSlow);
      spec.attentionFactor = optional("attention_factor");
      take("mscale", spec.mscale, false);
      take("mscale_all_dim", spec.mscaleAllDim, false);
      if (const json::Value *value = find("truncate")) {
        if (std::optional<bool> truncate = value->getAsBoolean())
          spec.truncate = *truncate;
        else
          fail(ErrorId::BadConfigValue,
               where("truncate") + "=" + jsonText(*value) + " is not true or false");
      }
      if (spec.theta <= 1)
        fail(ErrorId::BadConfigValue,
             "rope_theta=" + number(spec.theta) + " is not above 1, which rope_type yarn needs");
      break;
    case Scaling::longrope:
      spec.attentionFactor = optional("attention_factor");
      spec.shortDivisors = divisors("short_factor", spec.dim / 2);
      spec.longDivisors = divisors("long_factor", spec.dim / 2);
      break;
    case Scaling::llama3:
      for (auto [key, value] : {std::pair("low_freq_factor", &spec.lowFrequencyFactor),
                                std::pair("high_freq_factor", &spec.highFrequencyFactor)})
        if (!positive(key, *value))
          missing(key);
      if (spec.highFrequencyFactor <= spec.lowFrequencyFactor)
        fail(ErrorId::BadConfigValue,
             where("high_freq_factor") + "=" + number(spec.highFrequencyFactor) +
                 " is not above low_freq_factor=" + number(spec.lowFrequencyFactor));
      break;
    }
    if (fields.ownFactors) {
      spec.shortFactor = optional("short_mscale");
      spec.longFactor = optional("long_mscale");
      if (!spec.shortFactor || !spec.longFactor)
        missing(spec.shortFactor ? "long_mscale" : "short_mscale");
    }
    bool ratio = spec.scaling == Scaling::yarn || spec.scaling == Scaling::longrope;
    if (!haveFactor && !ratio)
      missing("factor");
    else if (!haveFactor && spec.positions > 0 && spec.originalPositions > 0)
      spec.factor = spec.positions / spec.originalPositions;
    else if (!haveFactor)
      needsPositions = true;
    bool needsOriginal = ratio || spec.scaling == Scaling::llama3;
    if ((needsPositions && spec.positions <= 0) || (needsOriginal && spec.originalPositions <= 0))
      fail(ErrorId::MissingConfigField, "max_position_embeddings is null, which " + fields.field +
                                            " of rope_type " + typeName + " needs");
    if (spec.scaling == Scaling::dynamic && spec.dim <= 2)
      fail(ErrorId::BadConfigValue,
           "rope_type dynamic needs heads of more than 2 rotated elements");
  }
};

} // namespace

RopeSpec moira::readRope(const RopeFields &fields, Status &status) {
  return Reader(fields, status).read();
}
