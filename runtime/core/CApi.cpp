//===- CApi.cpp - Moira's runtime for other languages ---------------------===//
// moira_rt.h over the C++ runtime. No exception leaves; errors go to the calling thread's last
// error.
//===----------------------------------------------------------------------===//
#include "moira_rt.h"

#include "RunSession.h"
#include "moira/rt/Run.h"

#include <exception>
#include <new>

using namespace moira::rt;
namespace fb = moira::fb;

struct moira_session {
  PlanFile plan;
  RunSession run;
  std::optional<Ranks> ranks;
  std::vector<GatheredOutput> outputs;
  std::vector<std::vector<float>> values; // of outputs
};

namespace {

thread_local std::string lastError;

int failed(const Status &status) {
  lastError = status.str();
  return status.exitCode();
}

/// Runs `body`, which returns a Status, and turns everything it does into a code.
template <typename Fn> int guarded(Fn body) {
  try {
    Status status = body();
    return status ? 0 : failed(status);
  } catch (const std::bad_alloc &) {
    return failed(Status(ErrorId::OutOfMemory, "memory for the runtime's own tables"));
  } catch (const std::exception &error) {
    return failed(Status(ErrorId::Internal, error.what()));
  }
}

Status nullArgument() { return Status(ErrorId::BadUsage, "a null pointer was passed"); }

Expected<fb::DType> typeOf(moira_dtype type) {
  static_assert(MOIRA_F32 == 0 && MOIRA_U8 == 6, "typeOf lists the enum in its order");
  constexpr fb::DType types[] = {fb::DType::f32, fb::DType::bf16, fb::DType::f16, fb::DType::f64,
                                 fb::DType::i32, fb::DType::i64,  fb::DType::u8};
  if (type < MOIRA_F32 || type > MOIRA_U8)
    return Status(ErrorId::BadUsage, format("%d is no moira_dtype", static_cast<int>(type)));
  return types[type];
}

Status checkProgram(moira_program kind) {
  int number = static_cast<int>(kind);
  if (number < MOIRA_MESH || number > MOIRA_REFERENCE_F64)
    return Status(ErrorId::BadUsage, format("%d is no moira_program", number));
  return {};
}

Status noState(size_t index, size_t count) {
  return Status(ErrorId::BadInput, format("state %zu of %zu", index, count));
}

/// A GPU's plan runs in this process only if it has one rank; the others are processes of their
/// own.
Status useDevice(moira_session &session, const char *path) {
  RunSession &run = session.run;
  int ranks = static_cast<int>(run.program->ranks());
  if (run.program->reference() || session.plan.plan().target()->string_view() == "host")
    return {};
  if (ranks != 1)
    return Status(ErrorId::BadRun,
                  format("%s has %d ranks on GPUs, which are a process each; run it "
                         "with moe-run, or compile it for one rank",
                         path, ranks));
  Expected<DevicePlugin *> plugin = loadCudaPlugin();
  if (!plugin)
    return plugin.takeStatus();
  Expected<DeviceSetup> device = chooseDevice(**plugin, {}, 0, 1, 1);
  if (!device)
    return device.takeStatus();
  run.cuda = true;
  run.plugin = *plugin;
  run.device = *device;
  return {};
}

/// A session runs one program, so it would add up gradients for ever.
Status checkNoParts(const fb::Program &program, const char *path) {
  if (program.name()->string_view() != "accumulate")
    return {};
  return Status(ErrorId::BadRun, format("%s takes a step's batch in parts; train it with moe-run, "
                                        "or compile it with --micro-batches=1",
                                        path));
}

Status openSession(moira_session &session, const char *path, const char *weights,
                   moira_program kind) {
  if (Status known = checkProgram(kind); !known)
    return known;
  Expected<PlanFile> plan = PlanFile::open(path);
  if (!plan)
    return plan.takeStatus();
  session.plan = std::move(*plan);
  Expected<const fb::Program *> program = findProgram(session.plan, path, kind != MOIRA_MESH);
  if (!program)
    return program.takeStatus();
  session.run.plan = &session.plan;
  session.run.program = *program;
  session.run.f64 = kind == MOIRA_REFERENCE_F64;
  if (kind == MOIRA_MESH)
    session.run.second = generatePrograms(session.plan.plan()).decode;
  Status status = checkNoParts(**program, path);
  status.append(useDevice(session, path));
  status.append(session.run.prepare(static_cast<int>((*program)->ranks())));
  if (weights)
    status.append(session.run.openWeights(weights));
  if (!status)
    return status;
  constexpr double kTimeoutSeconds = 300;
  Expected<Ranks> ranks = Ranks::threads(static_cast<int>((*program)->ranks()), kTimeoutSeconds);
  if (!ranks)
    return ranks.takeStatus();
  session.ranks = std::move(*ranks);
  return session.run.load(*session.ranks);
}

Status takeInputs(moira_session &session, const moira_tensor *inputs, size_t count) {
  std::map<std::string, HostTensor> tensors;
  for (size_t i = 0; i < count; ++i) {
    const moira_tensor &in = inputs[i];
    if (!in.name || !in.data || (in.rank > 0 && !in.shape))
      return nullArgument();
    if (in.rank < 0)
      return Status(ErrorId::BadUsage, format("%s has %d dimensions", in.name, in.rank));
    Expected<fb::DType> type = typeOf(in.dtype);
    if (!type)
      return type.takeStatus();
    HostTensor tensor{*type, {in.shape, in.shape + in.rank}, in.data};
    if (!tensors.emplace(in.name, std::move(tensor)).second)
      return Status(ErrorId::BadInput, format("inputs: %s is given twice", in.name));
  }
  Expected<InputSet> set = InputSet::fromMemory(tensors, *session.run.program);
  if (!set)
    return set.takeStatus();
  session.run.inputs = std::move(*set);
  return {};
}

Status steps(moira_session &session, std::span<double> milliseconds) {
  Status status = session.run.steps(*session.ranks, milliseconds);
  for (double &each : milliseconds)
    each *= 1e3;
  return status;
}

Status generate(moira_session &session, const int32_t *prompts, size_t rows, size_t width,
                size_t count, int32_t *ids, double *milliseconds) {
  GeneratePrograms programs = generatePrograms(session.plan.plan());
  if (!programs)
    return Status(ErrorId::BadRun,
                  "the plan generates no tokens; compile the model with --task=generate");
  if (count > INT32_MAX)
    return Status(ErrorId::BadRun, format("no plan has room for %zu new tokens", count));
  GenerateOptions options;
  options.maxNewTokens = static_cast<int64_t>(count);
  options.ignoreEos = true;
  Expected<GenerateTask> task =
      GenerateTask::fromMemory(programs, prompts, int64_t(rows), int64_t(width), options);
  if (!task)
    return task.takeStatus();
  session.run.task = std::move(*task);
  if (Status status = session.run.generate(*session.ranks, 0); !status)
    return status;
  const RankGeneration &made = *session.run.loops[0];
  std::copy(made.tokens().begin(), made.tokens().end(), ids);
  if (!milliseconds || count == 0)
    return {};
  *milliseconds++ = made.times().prefill * 1e3;
  for (double seconds : made.times().decode)
    *milliseconds++ = seconds * 1e3;
  return {};
}

Status writeState(moira_session &session, size_t index, const void *data) {
  ProgramRunner &runner = *session.run.executors[0];
  const auto &states = statesOf(session.plan.plan(), *session.run.program);
  if (index >= states.size())
    return noState(index, states.size());
  if (session.run.executors.size() != 1)
    return Status(ErrorId::BadRun,
                  format("states are written where a program has one rank, this one has %zu; give "
                         "moira_open a checkpoint",
                         session.run.executors.size()));
  return runner.writeState(index, data);
}

Status forward(moira_session &session) {
  if (Status status = session.run.step(*session.ranks); !status)
    return status;
  std::vector<GatheredOutput> outputs;
  Status status = session.ranks->each([&](int local) -> Ranks::Verdict {
    Expected<std::vector<TensorRef>> mine = session.run.executors[local]->outputs();
    if (!mine)
      return mine.takeStatus();
    Expected<std::vector<GatheredOutput>> all = gatherOutputs(
        session.plan.plan(), *session.run.program, *mine, session.ranks->communicator(local));
    if (!all)
      return all.takeStatus();
    if (local == 0)
      outputs = std::move(*all);
    return Status();
  });
  if (!status)
    return status;
  session.outputs = std::move(outputs);
  session.values.clear();
  for (const GatheredOutput &output : session.outputs)
    session.values.emplace_back(output.values.begin(), output.values.end());
  return {};
}

} // namespace

extern "C" {

const char *moira_version(void) { return MOIRA_VERSION; }

const char *moira_last_error(void) { return lastError.c_str(); }

moira_session *moira_open(const char *plan, const char *weights, moira_program program) {
  std::unique_ptr<moira_session> session;
  int code = guarded([&]() -> Status {
    if (!plan)
      return nullArgument();
    session = std::make_unique<moira_session>();
    return openSession(*session, plan, weights, program);
  });
  return code == 0 ? session.release() : nullptr;
}

void moira_close(moira_session *session) { delete session; }

int moira_forward(moira_session *session, const moira_tensor *inputs, size_t count) {
  return guarded([&]() -> Status {
    if (!session || (count && !inputs))
      return nullArgument();
    Status status = takeInputs(*session, inputs, count);
    return status ? forward(*session) : status;
  });
}

int moira_steps(moira_session *session, const moira_tensor *inputs, size_t count, size_t number,
                double *milliseconds) {
  return guarded([&]() -> Status {
    if (!session || (count && !inputs) || (number && !milliseconds))
      return nullArgument();
    Status status = takeInputs(*session, inputs, count);
    return status ? steps(*session, {milliseconds, number}) : status;
  });
}

int moira_generate(moira_session *session, const int32_t *prompts, size_t rows, size_t width,
                   size_t new_tokens, int32_t *ids, double *milliseconds) {
  return guarded([&]() -> Status {
    if (!session || !prompts || !ids)
      return nullArgument();
    return generate(*session, prompts, rows, width, new_tokens, ids, milliseconds);
  });
}

size_t moira_state_count(const moira_session *session) {
  return session ? statesOf(session->plan.plan(), *session->run.program).size() : 0;
}

int moira_state(const moira_session *session, size_t index, moira_tensor *state) {
  return guarded([&]() -> Status {
    if (!session || !state)
      return nullArgument();
    const auto &states = statesOf(session->plan.plan(), *session->run.program);
    if (index >= states.size())
      return noState(index, states.size());
    const fb::State &from = *states.Get(static_cast<unsigned>(index));
    fb::DType type = session->run.executors[0]->states()[index].dtype; // f64 in its reference
    *state = {from.name()->c_str(), static_cast<moira_dtype>(type),
              static_cast<int32_t>(from.shape()->size()), from.shape()->data(), nullptr};
    return {};
  });
}

int moira_write_state(moira_session *session, size_t index, const void *data) {
  return guarded([&]() -> Status {
    return session && data ? writeState(*session, index, data) : nullArgument();
  });
}

size_t moira_output_count(const moira_session *session) {
  return session ? session->outputs.size() : 0;
}

int moira_output(const moira_session *session, size_t index, moira_tensor *output) {
  return guarded([&]() -> Status {
    if (!session || !output)
      return nullArgument();
    if (index >= session->outputs.size())
      return Status(ErrorId::BadInput, format("output %zu of %zu; moira_forward makes them", index,
                                              session->outputs.size()));
    const GatheredOutput &from = session->outputs[index];
    *output = {from.name.c_str(), MOIRA_F32, static_cast<int32_t>(from.shape.size()),
               from.shape.data(), session->values[index].data()};
    return {};
  });
}

int moira_run_files(const char *plan, const char *weights, const char *inputs, const char *outputs,
                    moira_program program) {
  return guarded([&]() -> Status {
    if (!plan || !weights || !inputs || !outputs)
      return nullArgument();
    if (Status known = checkProgram(program); !known)
      return known;
    RunOptions options;
    options.plan = plan;
    options.weights = weights;
    options.inputs = inputs;
    options.outputs = outputs;
    options.reference = program == MOIRA_MESH            ? ReferenceMode::none
                        : program == MOIRA_REFERENCE_F64 ? ReferenceMode::f64
                                                         : ReferenceMode::f32;
    return runPlan(options, nullptr, [](const std::string &) {}).status;
  });
}

} // extern "C"
