//===- ShardingTestUtil.h - shardings written as text -----------*- C++ -*-===//
#ifndef MOIRA_TEST_UNIT_SHARDINGTESTUTIL_H
#define MOIRA_TEST_UNIT_SHARDINGTESTUTIL_H

#include "mlir/AsmParser/AsmParser.h"
#include "mlir/IR/MLIRContext.h"
#include "moira/Analysis/Mesh.h"
#include "moira/Analysis/ShardingUtils.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "llvm/Support/raw_ostream.h"
#include <gtest/gtest.h>

namespace moira {

/// A context with the dialects, and shardings as text without `#dist.sharding<` and `>`.
class ShardingTest : public testing::Test {
protected:
  ShardingTest() { context.loadDialect<dist::DistDialect, moe::MoeDialect>(); }

  /// "[{dp}, {}], partial = sum{tp}"; "" is null.
  dist::ShardingAttr sharding(llvm::StringRef text) {
    if (text.empty())
      return {};
    auto attr = mlir::parseAttribute(("#dist.sharding<" + text + ">").str(), &context);
    EXPECT_TRUE(attr) << text.str();
    return mlir::cast<dist::ShardingAttr>(attr);
  }

  static std::string text(mlir::Attribute attr) {
    if (!attr)
      return "";
    std::string out;
    llvm::raw_string_ostream stream(out);
    attr.print(stream);
    llvm::StringRef inner(out);
    inner.consume_front("#dist.sharding<");
    inner.consume_back(">");
    return inner.str();
  }

  MeshInfo mesh(llvm::StringRef text) {
    llvm::SmallVector<std::string> problems;
    auto mesh = parseMesh(&context, text, problems);
    EXPECT_TRUE(mesh) << text.str();
    return *mesh;
  }

  mlir::MLIRContext context;
};

} // namespace moira

#endif // MOIRA_TEST_UNIT_SHARDINGTESTUTIL_H
