//===- KernelSpecTest.cpp - Rules, text and dedup of kernel specs ---------===//
#include "moira/Target/Kernels/KernelSpec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

using namespace moira::kernels;
using testing::HasSubstr;

namespace {

/// The error that infer() gives for a spec in text form; "" if it is valid.
std::string check(llvm::StringRef text) {
  auto spec = parseKernelSpec(text);
  if (!spec)
    return llvm::toString(spec.takeError());
  auto values = spec->infer();
  return values ? "" : llvm::toString(values.takeError());
}

// The text form reads back to the same spec, and equal specs have equal keys.
TEST(KernelSpec, TextRoundTrip) {
  KernelSpec k;
  unsigned x = k.input(ScalarType::BF16, {6, 4, 80}), w = k.shared(ScalarType::BF16, {80});
  unsigned c = k.shared(ScalarType::F32, {6, 16}), s = k.shared(ScalarType::F32, {6, 16});
  unsigned y = k.rmsNorm(x, w, 1e-6);
  k.output(k.rope(y, c, s));
  k.output(y);
  EXPECT_EQ(k.key(), "in bf16[6,4,80]; shared bf16[80]; shared f32[6,16]; shared f32[6,16]; "
                     "v4 = rms_norm v0 v1 eps=9.9999999999999995e-07 : bf16; "
                     "v5 = rope v4 v2 v3 : bf16; out v5; out v4");
  auto back = parseKernelSpec(k.key());
  ASSERT_TRUE(bool(back)) << llvm::toString(back.takeError());
  EXPECT_EQ(back->key(), k.key());
  EXPECT_TRUE(back->operands == k.operands && back->steps == k.steps);
  EXPECT_EQ(k.stepNames(), "rms_norm_rope");
}

// Every rule of infer() is enforced.
TEST(KernelSpec, Rules) {
  EXPECT_EQ(check("in f32[4]; shared f32[4]; v2 = rms_norm v0 v1 eps=1 : f32; out v2"), "");
  EXPECT_THAT(
      check("in f32[4]; shared f32[5]; v2 = rms_norm v0 v1 eps=1 : f32; out v2"),
      HasSubstr("step 0 (rms_norm) has a weight of shape [5]; it must be the last dims of [4]"));
  EXPECT_THAT(check("in f32[4]; in f32[4]; v2 = rms_norm v0 v1 eps=1 : f32; out v2"),
              HasSubstr("shared input as weight"));
  EXPECT_THAT(check("in f32[4]; v1 = sum_squares v0 dims=2 : f32; out v1"),
              HasSubstr("sums over 2 dims of [4]"));
  EXPECT_THAT(check("in f32[4]; v1 = sum_squares v0 dims=1 : bf16; out v1"), HasSubstr("f32 only"));
  EXPECT_THAT(check("in f32[3,4]; in f32[4]; shared f32[4]; v3 = rms_apply v0 v1 v2 count=4 eps=1 "
                    ": f32; out v3"),
              HasSubstr("it must be rowwise and [3]"));
  EXPECT_THAT(
      check("in f32[4]; in f32[]; shared f32[4]; v3 = rms_apply v0 v1 v2 eps=1 : f32; out v3"),
      HasSubstr("count 0"));
  EXPECT_THAT(check("in f32[3,4]; shared f32[3]; v2 = add v0 v1 : f32; out v2"),
              HasSubstr("must be the last dims of [3,4]"));
  EXPECT_THAT(check("in f32[4]; v1 = clamp v0 lo=1 hi=0 : f32; out v1"), HasSubstr("empty range"));
  EXPECT_THAT(check("in f32[3,4]; v1 = glu v0 act=silu : f32; out v1"), HasSubstr("[..,2,F]"));
  EXPECT_THAT(check("in f32[4]; in f32[4]; v2 = sigmoid_gate v0 v1 : f32; out v2"),
              HasSubstr("last dim of 1"));
  EXPECT_THAT(
      check("in f32[2,2,8]; shared f32[2,5]; shared f32[2,5]; v3 = rope v0 v1 v2 : f32; out v3"),
      HasSubstr("2r at most d"));
  EXPECT_THAT(check("in f32[4]; v1 = cast v7 : f32; out v1"), HasSubstr("reads v7"));
  EXPECT_THAT(check("in f32[4]; v1 = add v0 : f32; out v1"),
              HasSubstr("has 1 arguments and needs 2"));
  EXPECT_THAT(check("shared f32[4]; v1 = cast v0 : bf16; out v1"),
              HasSubstr("shared first argument"));
  EXPECT_THAT(check("in i32[4]; v1 = clamp v0 lo=0 hi=1 : f32; out v1"),
              HasSubstr("does not take i32"));
  EXPECT_THAT(check("in f32[4]; v1 = cast v0 : bf16; out v0"),
              HasSubstr("not the result of a step"));
  EXPECT_THAT(check("in f32[4]; v1 = cast v0 : bf16; out v1; out v1"), HasSubstr("output twice"));
  EXPECT_THAT(check("in f32[1048576,1048577]; v1 = cast v0 : bf16; out v1"),
              HasSubstr("too large for a row"));
  EXPECT_THAT(check("in f32[0]; v1 = cast v0 : bf16; out v1"), HasSubstr("dim of size 0"));
  EXPECT_THAT(check("in f32[4]; v1 = cast v0 : bf16"),
              HasSubstr("needs an input, a step and an output"));
  EXPECT_THAT(check("in f32[4]; in f32[4]; v2 = cast v0 : bf16; out v2"),
              HasSubstr("v1 is not used"));
}

// What cannot share one pass structure is refused, so that a caller can try a group and fall back.
TEST(KernelSpec, Unfusable) {
  EXPECT_THAT(check("in f32[2,4]; shared f32[4]; shared f32[2,4]; v3 = rms_norm v0 v1 eps=1 : f32; "
                    "v4 = rms_norm v3 v2 eps=1 : f32; out v4"),
              HasSubstr("reductions over different dims"));
  EXPECT_THAT(check("in f32[6,2,8]; shared f32[6,2,8]; shared f32[6,4]; shared f32[6,4]; "
                    "v4 = rms_norm v0 v1 eps=1 : f32; v5 = rope v4 v2 v3 : f32; out v5"),
              "");
  EXPECT_THAT(check("in f32[3,2,4]; shared f32[4]; v2 = rms_norm v0 v1 eps=1 : f32; "
                    "v3 = glu v2 act=silu : f32; out v3"),
              HasSubstr("keeps apart"));
  EXPECT_THAT(
      check("in f32[6,2,8]; shared f32[6,4]; shared f32[6,4]; shared f32[6,2]; shared f32[6,2]; "
            "v5 = rope v0 v1 v2 : f32; v6 = rope v5 v3 v4 : f32; out v6"),
      HasSubstr("ropes of different sizes"));
}

// Text that is not a spec is refused with the clause.
TEST(KernelSpec, BadText) {
  for (const char *text :
       {"in f31[4]", "in f32[4", "v0 = nothing", "in f32[4]; v2 = cast v0 : f32",
        "in f32[4]; v1 = cast v0", "out x", "in f32[4]; v1 = glu v0 act=tanh : f32"})
    EXPECT_THAT(check(text), HasSubstr("cannot read")) << text;
}

// The table holds equal kernels once and gives distinct names.
TEST(KernelTable, Interns) {
  auto make = [](int64_t n, const char *name) {
    KernelSpec k;
    k.output(k.clamp(k.input(ScalarType::F32, {n}), 0, 1));
    k.name = name;
    return k;
  };
  KernelTable table;
  EXPECT_EQ(table.intern(make(4, "a")), 0u);
  EXPECT_EQ(table.intern(make(8, "b")), 1u);
  EXPECT_EQ(table.intern(make(4, "c")), 0u);
  ASSERT_EQ(table.kernels().size(), 2u);
  EXPECT_EQ(table.kernels()[0].name, "clamp");
  EXPECT_EQ(table.kernels()[1].name, "clamp_2");
}

} // namespace
