//===- PlanHostileStatesTest.cpp --------------------------------*- C++ -*-===//
// Shows that hostile plans are refused that have two memories, or that share and change states.
//===----------------------------------------------------------------------===//
#include "PlanHostile.h"

#include <limits>

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::test;

namespace {

using enum ErrorId;

/// A program that moves its input to the host, works there, and moves what it has made back.
PlanSpec offloadedPlan() {
  using fb::DType;
  PlanSpec plan;
  plan.calls = {"clamp"};
  ProgramSpec p;
  p.name = "forward";
  p.queues = {"compute", "d2h", "host", "h2d"};
  p.events = 2;
  p.arenas = {{"activations", fb::ArenaRole::activations, 128, 0},
              {"host", fb::ArenaRole::activations, 128, 0, fb::Space::host}};
  p.views = {{0, 0, 0, DType::f32, {4}},
             {1, 0, 0, DType::f32, {4}},
             {1, 64, 0, DType::f32, {4}},
             {0, 64, 0, DType::f32, {4}}};
  auto whole = [] { return std::vector{integerParam("dim", 0), integerParam("start", 0)}; };
  p.instrs = {{fb::InstrKind::copy, 0, 1, {0}, {1}, whole()},
              {fb::InstrKind::record, 0, 1},
              {fb::InstrKind::wait, 0, 2},
              {fb::InstrKind::call, 0, 2, {1}, {2}, {realParam("min", 0), realParam("max", 1)}},
              {fb::InstrKind::record, 1, 2},
              {fb::InstrKind::wait, 1, 3},
              {fb::InstrKind::copy, 0, 3, {2}, {3}, whole()}};
  p.inputs = {{"x", DType::f32, {4}, {{}}, 0}};
  p.outputs = {{"y", DType::f32, {4}, {{}}, 3}};
  plan.programs = {p};
  return plan;
}

TEST(HostilePlan, Memories) {
  Expected<PlanFile> valid = PlanFile::fromBytes(offloadedPlan().build());
  ASSERT_TRUE(valid) << valid.status().str();
  expectRefused(
      {
          {"memory of neither", [](auto &p) { p.forward().arenas[1].space = fb::Space::comm; },
           PlanStructure, "arena 1: is neither a device's nor its host's"},
          {"input on the host", [](auto &p) { p.forward().inputs[0].view = 1; }, PlanStructure,
           "view 1 is not in the device's memory"},
          {"output on the host", [](auto &p) { p.forward().outputs[0].view = 2; }, PlanStructure,
           "view 2 is not in the device's memory"},
          {"call that reads the device's and writes the host's",
           [](auto &p) { instr(p, 3).inputs = {0}; }, PlanStructure,
           "works on the device's memory and on the host's"},
          {"call that reads the host's and writes the device's",
           [](auto &p) { instr(p, 3).outputs = {3}; }, PlanStructure,
           "works on the device's memory and on the host's"},
          {"host's call on a queue of copies", [](auto &p) { instr(p, 3).queue = 1; },
           PlanStructure, "its queue has work of another memory"},
          {"copy on the host's queue", [](auto &p) { instr(p, 6).queue = 2; }, PlanStructure,
           "its queue has work of another memory"},
          {"no wait for the move", [](auto &p) { erase(p, 2); }, PlanOrder,
           "reads bytes that another queue may still be writing"},
      },
      offloadedPlan());
  // Products, exchanges and bounds are the device's.
  expectRefused({{"launches, collectives and bounds on the host",
                  [](auto &p) {
                    for (ArenaSpec &arena : p.forward().arenas)
                      arena.space = fb::Space::host;
                  },
                  PlanStructure, "works on the host's memory; only calls and copies do"}});
}

TEST(HostilePlan, SharedStates) {
  auto decode = [](PlanSpec &p) -> ProgramSpec & { return p.programs[1]; };
  expectRefused(
      {
          {"states of its own",
           [=](auto &p) { decode(p).states = {{.name = "c", .shape = {4}, .dims = {{}}}}; },
           PlanStructure, "\"decode\": has states of its own"},
          {"another arena in one place", [=](auto &p) { decode(p).arenas[0].name = "other"; },
           PlanStructure, "arena 0 \"other\" is another one than \"state\" of program \"prefill\""},
          {"state arenas of two sizes", [=](auto &p) { decode(p).arenas[0].bytes = 384; },
           PlanStructure, "arena 0 \"state\" is another one"},
          {"arenas in another space", [=](auto &p) { decode(p).arenas[1].space = fb::Space::host; },
           PlanStructure, "arena 1"},
          {"no arena for the states", [=](auto &p) { decode(p).arenas.clear(); }, PlanStructure,
           "lacks an arena in which states of the plan lie"},
          {"no program for the states",
           [](auto &p) {
             PlanSpec reference = expertPlan();
             p.programs[0].reference = p.programs[1].reference = true;
             p.programs = {p.programs[0]};
             p.programs[0].states.clear();
             p.orphans = reference.programs[1].states;
           },
           PlanStructure, "has states, but no mesh program"},
          {"a state written by another call",
           [=](auto &p) {
             decode(p).views.push_back({1, 128, 0, fb::DType::f32, {2, 8, 4}});
             decode(p).instrs[1].inputs = {4};
             decode(p).instrs[1].outputs = {2};
           },
           PlanStructure, "output 0 writes to the state arena"},
      },
      cachePlan());
}

TEST(HostilePlan, WritesOfStates) {
  auto decode = [](PlanSpec &p) -> ProgramSpec & { return p.programs[1]; };
  const char *whole = "its output is not the whole of one state without a source";
  expectRefused(
      {
          {"a part of a state",
           [=](auto &p) {
             decode(p).views[2].shape = {1, 8, 4};
             decode(p).views[0].shape = {1, 1, 4};
             decode(p).inputs[0].shape = {1, 1, 4};
             decode(p).views[3].shape = decode(p).outputs[0].shape = {1, 8, 4};
           },
           PlanOrder, whole},
          {"what a checkpoint fills",
           [](auto &p) {
             p.programs[0].states[1].sources = {"cache"};
             p.programs[0].states[1].diskShape = {64};
           },
           PlanOrder, whole},
          {"no state at all",
           [=](auto &p) {
             decode(p).views[2] = {1, 384, 0, fb::DType::f32, {2, 8, 4}};
             decode(p).arenas[1].bytes = 640;
           },
           PlanOrder, whole},
          {"a read before", [=](auto &p) { std::swap(decode(p).instrs[0], decode(p).instrs[1]); },
           PlanOrder, "the state has been read or written before"},
          {"a write before", [=](auto &p) { decode(p).instrs.push_back(decode(p).instrs.front()); },
           PlanOrder, "the state has been read or written before"},
          {"a position that is computed",
           [=](auto &p) {
             InstrSpec fill{fb::InstrKind::fill, 0, 0, {}, {1}, {realParam("value", 3)}};
             decode(p).instrs.insert(decode(p).instrs.begin(), fill);
           },
           PlanOrder, "its position is not as the program was given it"},
          {"more rows than the state has",
           [](auto &p) {
             p.programs[0].views[0].shape = p.programs[0].inputs[0].shape =
                 p.programs[0].outputs[0].shape = {2, 9, 4};
             p.programs[0].arenas[1].bytes = 320;
           },
           PlanShape, "9 rows do not fit into 8"},
      },
      cachePlan());
}

/// One program that updates a weight and its momentum behind a bound that may turn out too small.
PlanSpec trainPlan() {
  using fb::DType;
  PlanSpec plan;
  plan.calls = {"sgd"};
  ProgramSpec p;
  p.name = "train";
  p.queues = {"q"};
  p.boundInitial = 1;
  p.boundMax = 4;
  p.arenas = {{"state", fb::ArenaRole::state, 128, 0},
              {"activations", fb::ArenaRole::activations, 256, 0},
              {"ragged", fb::ArenaRole::ragged, 0, 64}};
  p.states = {{.name = "w", .shape = {4}, .dims = {{}}, .sources = {"w"}, .diskShape = {4}},
              {.name = "w.sgd.b", .shape = {4}, .dims = {{}}, .offset = 64}};
  p.views = {{1, 0, 0, DType::f32, {4}},
             {1, 64, 0, DType::f32, {1}},
             {1, 128, 0, DType::i32, {1}},
             {0, 0, 0, DType::f32, {4}},
             {0, 64, 0, DType::f32, {4}}};
  p.inputs = {{"grad", DType::f32, {4}, {{}}, 0},
              {"lr", DType::f32, {1}, {{}}, 1},
              {"need", DType::i32, {1}, {{}}, 2, 0, 7}};
  p.outputs = {{"grad", DType::f32, {4}, {{}}, 0}};
  p.instrs = {{.kind = fb::InstrKind::require_bound, .inputs = {2}},
              {fb::InstrKind::call,
               0,
               0,
               {0, 1},
               {3, 4},
               {realParam("momentum", 0.9),
                realParam("weight_decay", 0),
                {.name = "nesterov", .kind = fb::ParamKind::integer}}}};
  plan.programs = {p};
  return plan;
}

TEST(HostilePlan, Updates) {
  std::vector<uint8_t> bytes = trainPlan().build();
  Expected<PlanFile> file = PlanFile::fromBytes(bytes);
  EXPECT_TRUE(file) << file.status().str();
  auto train = [](PlanSpec &p) -> ProgramSpec & { return p.programs[0]; };
  const char *whole = "an output is not the whole of one state";
  expectRefused(
      {
          {"an update that could be repeated",
           [=](auto &p) { std::swap(train(p).instrs[0], train(p).instrs[1]); }, PlanOrder,
           "instruction 1 may have the step repeated, which would find other states"},
          {"no state at all",
           [=](auto &p) { train(p).views[3] = {1, 192, 0, fb::DType::f32, {4}}; }, PlanOrder,
           "reads bytes that nothing has written"},
          {"a part of a state",
           [=](auto &p) {
             train(p).states[1].shape = {8};
             train(p).arenas[0].bytes = 128;
           },
           PlanOrder, whole},
          {"one state twice", [=](auto &p) { train(p).instrs[1].outputs = {3, 3}; }, PlanOrder,
           "outputs 0 and 1 overlap"},
          {"a state that is its gradient", [=](auto &p) { train(p).instrs[1].inputs = {3, 1}; },
           PlanOrder, "output 0 overlaps input 0"},
          {"a momentum of another shape",
           [=](auto &p) { train(p).states[1].shape = train(p).views[4].shape = {5}; }, PlanShape,
           "call sgd"},
          {"a momentum that is no number",
           [=](auto &p) {
             param(train(p).instrs[1], "momentum").r = std::numeric_limits<double>::quiet_NaN();
           },
           PlanShape, "momentum is not a number"},
          {"a negative momentum", [=](auto &p) { param(train(p).instrs[1], "momentum").r = -1; },
           PlanShape, "momentum is -1"},
      },
      trainPlan());
}

/// adamw reads what it updates, and gives a sum of squares that nothing has written before.
TEST(HostilePlan, SumsOfUpdates) {
  PlanSpec plan = trainPlan();
  plan.calls = {"adamw"};
  ProgramSpec &p = plan.programs[0];
  p.arenas[0].bytes = 192, p.arenas[1].bytes = 320;
  p.states.push_back({.name = "w.v", .shape = {4}, .dims = {{}}, .offset = 128});
  p.views.push_back({0, 128, 0, fb::DType::f32, {4}});
  p.views.push_back({1, 192, 0, fb::DType::f32, {1}});
  p.instrs[1] = {fb::InstrKind::call,
                 0,
                 0,
                 {0, 1, 2},
                 {3, 4, 5, 6},
                 {realParam("beta1", 0.9), realParam("beta2", 0.9), realParam("eps", 1e-8),
                  realParam("weight_decay", 0)}};
  std::vector<uint8_t> bytes = plan.build();
  Expected<PlanFile> file = PlanFile::fromBytes(bytes);
  EXPECT_TRUE(file) << file.status().str();
  expectRefused(
      {{"no state", [](auto &p) { p.programs[0].views[5] = {1, 256, 0, fb::DType::f32, {4}}; },
        PlanOrder, "reads bytes that nothing has written"}},
      plan);
}

} // namespace
