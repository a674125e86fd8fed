//===- Generate.cpp - making tokens one after another ---------------------===//
// See Generate.h.
//===----------------------------------------------------------------------===//
#include "Generate.h"

#include "JsonLimits.h"
#include "MappedFile.h"
#include "moira/rt/Weights.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <unistd.h>

namespace moira::rt {

GeneratePrograms generatePrograms(const fb::Plan &plan) {
  GeneratePrograms found;
  for (const fb::Program *program : *plan.programs()) {
    std::string_view name = program->name()->string_view();
    if (program->reference())
      found.reference = program;
    else if (name == "prefill")
      found.prefill = program;
    else if (name == "decode")
      found.decode = program;
  }
  return found.prefill && found.decode ? found : GeneratePrograms();
}

//===----------------------------------------------------------------------===//
// Special tokens
//===----------------------------------------------------------------------===//

namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t(16) << 20;

/// The file's object; null where there is no file.
Expected<nlohmann::json> readObject(const std::string &path) {
  if (access(path.c_str(), F_OK) != 0)
    return nlohmann::json();
  Expected<MappedFile> map = MappedFile::open(path);
  if (!map)
    return map.takeStatus();
  auto bad = [&](const std::string &why) { return Status(ErrorId::BadInput, path + ": " + why); };
  std::span<const uint8_t> bytes = map->bytes;
  if (bytes.size() > kMaxConfigBytes || scanJson(bytes).longestString > kJsonStringLimit)
    return bad("too large for a model's configuration");
  nlohmann::json value = nlohmann::json::parse(bytes.begin(), bytes.end(), nullptr,
                                               /*allow_exceptions=*/false);
  if (!value.is_object())
    return bad("not a JSON object");
  return value;
}

/// Token ids under a key: one, several, or none (null, absent, −1).
Status readTokens(const nlohmann::json &object, const char *key, const std::string &path,
                  std::vector<int32_t> &tokens) {
  auto it = object.find(key);
  if (it == object.end() || it->is_null())
    return {};
  auto take = [&](const nlohmann::json &value) -> Status {
    if (value.is_number_integer() && value.get<int64_t>() < 0)
      return {};
    if (!value.is_number_integer() || value.get<int64_t>() > INT32_MAX)
      return Status(ErrorId::BadInput,
                    format("%s: %s is no token id, or list of them", path.c_str(), key));
    tokens.push_back(value.get<int32_t>());
    return {};
  };
  if (!it->is_array())
    return take(*it);
  Status status;
  for (const nlohmann::json &value : *it)
    if (status)
      status = take(value);
  return status;
}

/// Settings that change which token is taken without any sampling, and the number with which they
/// do not; of those that are ids or lists there is none.
constexpr double kNoNumber = -1;
constexpr std::pair<const char *, double> kOtherChoices[] = {
    {"num_beams", 1},
    {"repetition_penalty", 1},
    {"encoder_repetition_penalty", 1},
    {"no_repeat_ngram_size", 0},
    {"encoder_no_repeat_ngram_size", 0},
    {"min_length", 0},
    {"min_new_tokens", 0},
    {"forced_bos_token_id", kNoNumber},
    {"forced_eos_token_id", kNoNumber},
    {"suppress_tokens", kNoNumber},
    {"begin_suppress_tokens", kNoNumber},
    {"bad_words_ids", kNoNumber},
    {"sequence_bias", kNoNumber},
    {"exponential_decay_length_penalty", kNoNumber}};

std::vector<std::string> otherChoices(const nlohmann::json &object) {
  std::vector<std::string> found;
  for (auto [name, idle] : kOtherChoices) {
    auto it = object.find(name);
    if (it == object.end() || it->is_null() || (it->is_structured() && it->empty()) ||
        (it->is_number() && it->get<double>() == idle))
      continue;
    found.push_back(it->is_number() ? name + ("=" + it->dump()) : name);
  }
  return found;
}

} // namespace

Expected<SpecialTokens> readSpecialTokens(const std::string &directory) {
  SpecialTokens special;
  Status problems;
  for (bool generation : {true, false}) {
    std::string path = directory + (generation ? "/generation_config.json" : "/config.json");
    Expected<nlohmann::json> object = readObject(path);
    if (!object) {
      problems.append(object.takeStatus());
      continue;
    }
    if (object->is_null())
      continue;
    auto one = [&](const char *key, std::optional<int32_t> &to) {
      std::vector<int32_t> found;
      problems.append(readTokens(*object, key, path, found));
      if (!to && !found.empty())
        to = found.front();
    };
    if (generation)
      special.notDone = otherChoices(*object);
    if (special.stop.empty())
      problems.append(readTokens(*object, "eos_token_id", path, special.stop));
    one("pad_token_id", special.pad);
    one("decoder_start_token_id", special.start);
  }
  if (!problems)
    return problems;
  return special;
}

//===----------------------------------------------------------------------===//
// Prompts
//===----------------------------------------------------------------------===//

namespace {

const fb::Input *inputOf(const fb::Program &program, std::string_view name) {
  for (const fb::Input *input : *program.inputs())
    if (input->name()->string_view() == name)
      return input;
  return nullptr;
}

/// Rows of ids with a mask, from a file.
struct Rows {
  int64_t width = 0;
  std::vector<int32_t> ids, mask;
};

/// Integers [rows, width] of the file as i32; width −1: any up to `most`.
Status readRows(const SafeTensorsFile &file, const std::string &path, const std::string &name,
                int64_t rows, int64_t most, int64_t least, int64_t greatest, int64_t &width,
                std::vector<int32_t> &to) {
  const TensorInfo &info = *file.find(name);
  bool wide = info.type == TensorType::i64;
  if (!wide && info.type != TensorType::i32)
    return Status(ErrorId::BadInput, format("%s: %s is %s, the plan takes I32 or I64", path.c_str(),
                                            name.c_str(), nameOf(info.type)));
  if (info.shape.size() != 2 || info.shape[0] != rows || info.shape[1] < 1 ||
      info.shape[1] > most || (width >= 0 && info.shape[1] != width))
    return Status(ErrorId::BadInput,
                  width >= 0
                      ? format("%s: %s has shape %s, the tokens have [%lld, %lld]", path.c_str(),
                               name.c_str(), shapeText(info.shape).c_str(), (long long)rows,
                               (long long)width)
                      : format("%s: %s has shape %s, the plan was compiled for [%lld, up to %lld]",
                               path.c_str(), name.c_str(), shapeText(info.shape).c_str(),
                               (long long)rows, (long long)most));
  width = info.shape[1];
  const uint8_t *data = file.data(info).data();
  to.resize(rows * width);
  for (int64_t i = 0; i < rows * width; ++i) {
    int64_t value = 0;
    if (wide) {
      std::memcpy(&value, data + i * 8, 8);
    } else {
      int32_t narrow;
      std::memcpy(&narrow, data + i * 4, 4);
      value = narrow;
    }
    if (value < least || value > greatest)
      return Status(ErrorId::BadInput,
                    format("%s: %s%s = %lld is out of range %lld..%lld", path.c_str(), name.c_str(),
                           indexText(info.shape, i).c_str(), (long long)value, (long long)least,
                           (long long)greatest));
    to[i] = int32_t(value);
  }
  return {};
}

/// Tokens and mask (1 where the file has none).
Status readMasked(const SafeTensorsFile &file, const std::string &path, const fb::Input &input,
                  const std::string &maskName, Rows &to) {
  int64_t rows = input.shape()->Get(0);
  to.width = -1;
  Status status = readRows(file, path, input.name()->str(), rows, input.shape()->Get(1),
                           input.minimum(), input.maximum(), to.width, to.ids);
  if (!status)
    return status;
  to.mask.assign(to.ids.size(), 1);
  if (file.find(maskName))
    status =
        readRows(file, path, maskName, rows, to.width, INT32_MIN, INT32_MAX, to.width, to.mask);
  return status;
}

} // namespace

Status GenerateTask::takeSizes() {
  const fb::Input *decoder = inputOf(*all.prefill, "decoder_input_ids");
  const fb::Input &prompt = decoder ? *decoder : *inputOf(*all.prefill, "input_ids");
  rows = prompt.shape()->Get(0);
  promptSlots = prompt.shape()->Get(1);
  slots = inputOf(*all.decode, "position")->maximum() + 1;
  if (asked.maxNewTokens > slots - promptSlots)
    return Status(ErrorId::BadRun,
                  format("--max-new-tokens=%lld: the plan has room for %lld new tokens after a "
                         "prompt of %lld; compile with --max-seq=%lld",
                         (long long)asked.maxNewTokens, (long long)(slots - promptSlots),
                         (long long)promptSlots, (long long)(promptSlots + asked.maxNewTokens)));
  return {};
}

Status GenerateTask::readPrompts(const std::string &path) {
  const fb::Program &prefill = *all.prefill;
  const fb::Input *decoder = inputOf(prefill, "decoder_input_ids");
  const fb::Input &prompt = decoder ? *decoder : *inputOf(prefill, "input_ids");
  Expected<SafeTensorsFile> file = SafeTensorsFile::open(path);
  if (!file)
    return file.takeStatus();
  std::set<std::string> taken = {"input_ids", "attention_mask"};
  if (decoder)
    taken.insert({"decoder_input_ids", "decoder_attention_mask"});
  for (const TensorInfo &tensor : file->tensors())
    if (!taken.contains(tensor.name))
      unused.push_back(tensor.name);
  if (!file->find("input_ids"))
    return Status(ErrorId::BadInput, path + ": tensor input_ids is missing");

  Rows given;
  if (decoder) {
    const fb::Input &input = *inputOf(prefill, "input_ids");
    encoderSlots = input.shape()->Get(1);
    Rows source;
    if (Status s = readMasked(*file, path, input, "attention_mask", source); !s)
      return s;
    // An encoder knows tokens from pads by the mask, so they may stand anywhere.
    encoderIds.assign(rows * encoderSlots, special.filler());
    encoderMask.assign(rows * encoderSlots, 0);
    for (int64_t b = 0; b < rows; ++b) {
      std::copy_n(&source.ids[b * source.width], source.width, &encoderIds[b * encoderSlots]);
      std::copy_n(&source.mask[b * source.width], source.width, &encoderMask[b * encoderSlots]);
    }
  }
  if (decoder && !file->find("decoder_input_ids")) {
    if (!special.start)
      return Status(ErrorId::BadInput,
                    path + ": without decoder_input_ids the model must say how they start, and "
                           "neither generation_config.json nor config.json in --weights has a "
                           "decoder_start_token_id");
    given.width = 1;
    given.ids.assign(rows, *special.start);
    given.mask.assign(rows, 1);
  } else if (Status s = readMasked(*file, path, prompt,
                                   decoder ? "decoder_attention_mask" : "attention_mask", given);
             !s) {
    return s;
  }
  return place(given.ids, given.mask, path);
}

Status GenerateTask::place(std::span<const int32_t> ids, std::span<const int32_t> mask,
                           const std::string &from) {
  width = int64_t(ids.size()) / rows;
  prompts.assign(rows * promptSlots, special.filler());
  promptMask.assign(rows * promptSlots, 0);
  Status problems;
  for (int64_t b = 0; b < rows; ++b) {
    int64_t to = (b + 1) * promptSlots;
    for (int64_t i = width; i-- > 0;)
      if (mask[b * width + i]) {
        prompts[--to] = ids[b * width + i];
        promptMask[to] = 1;
      }
    if (to == (b + 1) * promptSlots)
      problems.add(ErrorId::BadInput, format("%s: row %lld has no token; every prompt needs one",
                                             from.c_str(), (long long)b));
  }
  return problems;
}

Expected<GenerateTask> GenerateTask::open(const GeneratePrograms &programs,
                                          const std::string &inputs, const std::string &model,
                                          const GenerateOptions &options) {
  GenerateTask task;
  task.all = programs;
  task.asked = options;
  Expected<SpecialTokens> special = readSpecialTokens(model);
  if (!special)
    return special.takeStatus();
  task.special = std::move(*special);
  Status status = task.takeSizes();
  if (status)
    status = task.readPrompts(inputs);
  if (!status)
    return status;
  return task;
}

Expected<GenerateTask> GenerateTask::fromMemory(const GeneratePrograms &programs,
                                                const int32_t *prompts, int64_t count,
                                                int64_t width, const GenerateOptions &options) {
  GenerateTask task;
  task.all = programs;
  task.asked = options;
  if (inputOf(*programs.prefill, "decoder_input_ids"))
    return Status(ErrorId::BadRun, "a model with an encoder generates from files, by moe-run");
  if (Status status = task.takeSizes(); !status)
    return status;
  if (count != task.rows || width < 1 || width > task.promptSlots)
    return Status(ErrorId::BadInput,
                  format("prompts of shape %s: the plan was compiled for [%lld, up to %lld]",
                         shapeText(std::vector<int64_t>{count, width}).c_str(),
                         (long long)task.rows, (long long)task.promptSlots));
  const fb::Input &input = *inputOf(*programs.prefill, "input_ids");
  std::span<const int32_t> ids(prompts, static_cast<size_t>(count * width));
  for (int32_t id : ids)
    if (id < input.minimum() || id > input.maximum())
      return Status(ErrorId::BadInput,
                    format("token %d of a prompt is out of range %lld..%lld", id,
                           (long long)input.minimum(), (long long)input.maximum()));
  std::vector<int32_t> mask(ids.size(), 1);
  if (Status status = task.place(ids, mask, "prompts"); !status)
    return status;
  return task;
}

//===----------------------------------------------------------------------===//
// The loop
//===----------------------------------------------------------------------===//

RankGeneration::RankGeneration(const GenerateTask &task, RankProfile *profile)
    : task(task), profile(profile) {
  const GenerateOptions &asked = task.asked;
  sampling = {float(asked.temperature), float(asked.topP)};
  draw = {asked.topK, int32_t(uint32_t(asked.seed)), int32_t(uint32_t(asked.seed >> 32)), 0};
  next.assign(task.rows, 0);
  places.assign(task.rows, 0);
}

Expected<InputSet> RankGeneration::inputsOf(const fb::Program &program) {
  std::map<std::string, HostTensor> tensors;
  auto add = [&](const char *name, fb::DType type, const void *data) {
    if (const fb::Input *input = inputOf(program, name))
      tensors[name] = {type, {input->shape()->begin(), input->shape()->end()}, data};
  };
  bool decode = &program == task.all.decode, prefill = &program == task.all.prefill;
  const std::string prefix = task.encoderSlots ? "decoder_" : "";
  if (task.encoderSlots) {
    add("input_ids", fb::DType::i32, task.encoderIds.data());
    add("attention_mask", fb::DType::i32, task.encoderMask.data());
  }
  add((prefix + "input_ids").c_str(), fb::DType::i32,
      decode    ? next.data()
      : prefill ? task.prompts.data()
                : ids.data());
  add((prefix + "attention_mask").c_str(), fb::DType::i32,
      prefill ? task.promptMask.data() : mask.data());
  add("position", fb::DType::i32, position.data());
  add("token_positions", fb::DType::i32, decode ? places.data() : laterPlaces.data());
  add("sampling", fb::DType::f32, sampling.data());
  add("draw", fb::DType::i32, draw.data());
  add("step", fb::DType::i32, stepNumber.data());
  return InputSet::fromMemory(tensors, program);
}

Status RankGeneration::step(ProgramRunner &runner, size_t number, const fb::Program &program,
                            const InputSet &inputs) {
  uint32_t ran = static_cast<uint32_t>(number);
  ProfileSpan span(profile, RankProfile::Span::program, static_cast<uint64_t>(stepNumber[0]), ran);
  if (Status status = runner.step(inputs, number); !status)
    return status;
  Expected<std::vector<TensorRef>> outputs = runner.outputs(number);
  if (!outputs)
    return outputs.takeStatus();
  for (size_t i = 0; i < outputs->size(); ++i)
    if (program.outputs()->Get(i)->name()->string_view() == "next_ids" &&
        (*outputs)[i].elements() == task.rows && (*outputs)[i].dtype == fb::DType::i32) {
      std::copy_n(static_cast<const int32_t *>((*outputs)[i].data), task.rows, next.begin());
      return {};
    }
  return Status(ErrorId::BadRun, format("program %s gives no next_ids for %lld rows",
                                        program.name()->c_str(), (long long)task.rows));
}

Status
RankGeneration::run(ProgramRunner &runner, bool reference,
                    const std::function<void(int64_t step, std::span<const int32_t> ids)> &onStep) {
  using Clock = std::chrono::steady_clock;
  int64_t rows = task.rows, slots = task.slots, prompt = task.promptSlots;
  made.clear();
  seconds = {};
  if (reference) {
    ids.assign(rows * slots, task.special.filler());
    mask.assign(rows * slots, 0);
    laterPlaces.assign(rows * slots, 0);
    for (int64_t b = 0; b < rows; ++b) {
      std::copy_n(&task.prompts[b * prompt], prompt, &ids[b * slots]);
      std::copy_n(&task.promptMask[b * prompt], prompt, &mask[b * slots]);
    }
  }
  for (int64_t b = 0; b < rows; ++b)
    places[b] = std::count_if(&task.promptMask[b * prompt], &task.promptMask[b * prompt] + prompt,
                              [](int32_t m) { return m != 0; });
  std::fill(next.begin(), next.end(), task.special.filler());
  position[0] = int32_t(prompt - (reference ? 1 : 0));
  const fb::Program &first = reference ? *task.all.reference : *task.all.prefill;
  const fb::Program &later = reference ? *task.all.reference : *task.all.decode;
  Expected<InputSet> firstInputs = inputsOf(first), laterInputs = inputsOf(later);
  if (!firstInputs)
    return firstInputs.takeStatus();
  if (!laterInputs)
    return laterInputs.takeStatus();

  std::vector<bool> finished(rows);
  std::vector<std::vector<int32_t>> perRow(rows);
  for (int64_t t = 0; t < task.asked.maxNewTokens; ++t) {
    auto start = Clock::now();
    draw[3] = stepNumber[0] = int32_t(t);
    if (t > 0) {
      for (int64_t b = 0; b < rows; ++b) {
        ++places[b];
        if (reference) {
          ids[b * slots + prompt + t - 1] = next[b];
          mask[b * slots + prompt + t - 1] = 1;
          laterPlaces[b * slots + prompt + t - 1] = places[b];
        }
      }
      position[0] = int32_t(prompt + t - 1);
    }
    Status status = t == 0 ? step(runner, 0, first, *firstInputs)
                           : step(runner, reference ? 0 : 1, later, *laterInputs);
    if (!status)
      return status;
    for (int64_t b = 0; b < rows; ++b) {
      if (finished[b])
        next[b] = task.special.filler();
      else if (!task.asked.ignoreEos)
        finished[b] = std::count(task.special.stop.begin(), task.special.stop.end(), next[b]) != 0;
      perRow[b].push_back(next[b]);
    }
    double took = std::chrono::duration<double>(Clock::now() - start).count();
    if (t == 0)
      seconds.prefill = took;
    else
      seconds.decode.push_back(took);
    if (onStep)
      onStep(t, next);
    if (std::all_of(finished.begin(), finished.end(), [](bool f) { return f; }))
      break;
  }
  for (const std::vector<int32_t> &row : perRow)
    made.insert(made.end(), row.begin(), row.end());
  return {};
}

Status RankGeneration::write(const std::string &path, Communicator &communicator) const {
  int64_t rows = task.rows, width = task.width, count = steps(), prompt = task.promptSlots;
  std::vector<int32_t> all;
  for (int64_t b = 0; b < rows; ++b) {
    auto end = task.prompts.begin() + (b + 1) * prompt;
    all.insert(all.end(), end - width, end);
    all.insert(all.end(), made.begin() + b * count, made.begin() + (b + 1) * count);
  }
  std::vector<int64_t> shape = {rows, width + count};
  Shard shard{shape, shape, {0, 0}, shape, communicator.rank() == 0};
  ShardToWrite tensor{
      {"generated_ids", TensorType::i64, shape}, shard, {all.data(), fb::DType::i32, shape}};
  return writeShards(path, {&tensor, 1}, communicator);
}

} // namespace moira::rt
