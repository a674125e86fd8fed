//===- CudnnGraph.cpp - an operation graph for cuDNN ------------------------===//
// See CudnnGraph.h.
//===----------------------------------------------------------------------===//
#include "CudnnGraph.h"

#include <algorithm>

namespace moira::rt::cuda {

CudnnGraph::Descriptor CudnnGraph::make(cudnnBackendDescriptorType_t type) const {
  cudnnBackendDescriptor_t made = nullptr;
  if (library.createDescriptor(type, &made) != CUDNN_STATUS_SUCCESS)
    made = nullptr;
  return Descriptor(made, Release{&library});
}

template <typename Value>
void CudnnGraph::set(const Descriptor &to, cudnnBackendAttributeName_t name,
                     cudnnBackendAttributeType_t type, std::span<const Value> values) {
  if (status == CUDNN_STATUS_SUCCESS)
    status = to ? library.setAttribute(to.get(), name, type, int64_t(values.size()), values.data())
                : CUDNN_STATUS_ALLOC_FAILED;
}

void CudnnGraph::set(const Descriptor &to, cudnnBackendAttributeName_t name, CudnnTensor tensor) {
  set(to, name, CUDNN_TYPE_BACKEND_DESCRIPTOR,
      cudnnBackendDescriptor_t(tensors[size_t(tensor.id - 1)].get()));
}

void CudnnGraph::finish(const Descriptor &descriptor) {
  if (status == CUDNN_STATUS_SUCCESS)
    status = library.finalize(descriptor.get());
}

CudnnTensor CudnnGraph::add(cudnnDataType_t type, CudnnDims dims, CudnnDims strides, bool isVirtual,
                            bool isByValue) {
  const CudnnTensor made{int64_t(tensors.size()) + 1, dims};
  Descriptor tensor = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  set(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::span<const int64_t>(dims));
  set(tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::span<const int64_t>(strides));
  set(tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, made.id);
  set(tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t(16));
  set(tensor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, isVirtual);
  set(tensor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, isByValue);
  finish(tensor);
  tensors.push_back(std::move(tensor));
  return made;
}

CudnnTensor CudnnGraph::tensor(cudnnDataType_t type, CudnnDims dims, CudnnDims strides) {
  return add(type, dims, strides, false, false);
}

CudnnTensor CudnnGraph::between(cudnnDataType_t type, CudnnDims dims) {
  return between(type, dims, {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1});
}

CudnnTensor CudnnGraph::between(cudnnDataType_t type, CudnnDims dims, CudnnDims strides) {
  return add(type, dims, strides, true, false);
}

CudnnTensor CudnnGraph::scalar() {
  return add(CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
}

void CudnnGraph::addOperation(Descriptor operation) {
  finish(operation);
  inOrder.push_back(operation.get());
  operations.push_back(std::move(operation));
}

void CudnnGraph::multiply(CudnnTensor a, CudnnTensor b, CudnnTensor out) {
  Descriptor product = make(CUDNN_BACKEND_MATMUL_DESCRIPTOR),
             operation = make(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  set(product, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  finish(product);
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
      cudnnBackendDescriptor_t(product.get()));
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, out);
  operations.push_back(std::move(product));
  addOperation(std::move(operation));
}

CudnnGraph::Descriptor CudnnGraph::pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t math,
                                             int64_t axis) {
  Descriptor function = make(CUDNN_BACKEND_POINTWISE_DESCRIPTOR),
             operation = make(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set(function, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
  set(function, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, math);
  if (axis >= 0)
    set(function, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
  finish(function);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR,
      cudnnBackendDescriptor_t(function.get()));
  operations.push_back(std::move(function));
  return operation;
}

void CudnnGraph::apply(cudnnPointwiseMode_t mode, CudnnTensor a, CudnnTensor out) {
  Descriptor operation = pointwise(mode, CUDNN_DATA_FLOAT);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, a);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
  addOperation(std::move(operation));
}

void CudnnGraph::apply(cudnnPointwiseMode_t mode, CudnnTensor a, CudnnTensor b, CudnnTensor out,
                       cudnnDataType_t math) {
  Descriptor operation = pointwise(mode, math);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, a);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
  addOperation(std::move(operation));
}

void CudnnGraph::select(CudnnTensor condition, CudnnTensor a, CudnnTensor b, CudnnTensor out) {
  Descriptor operation = pointwise(CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, a);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, condition);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
  addOperation(std::move(operation));
}

void CudnnGraph::index(int64_t dimension, CudnnTensor like, CudnnTensor out) {
  Descriptor operation = pointwise(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, dimension);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, like);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
  addOperation(std::move(operation));
}

void CudnnGraph::reshape(CudnnTensor a, CudnnTensor out) {
  Descriptor operation = make(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  set(operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, a);
  set(operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, out);
  addOperation(std::move(operation));
}

void CudnnGraph::reduce(cudnnReduceTensorOp_t how, CudnnTensor a, CudnnTensor out) {
  Descriptor reduction = make(CUDNN_BACKEND_REDUCTION_DESCRIPTOR),
             operation = make(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  set(reduction, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, how);
  set(reduction, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  finish(reduction);
  set(operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
      cudnnBackendDescriptor_t(reduction.get()));
  set(operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, a);
  set(operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out);
  operations.push_back(std::move(reduction));
  addOperation(std::move(operation));
}

bool CudnnGraph::plan(cudnnHandle_t handle) {
  constexpr int64_t mostConfigurations = 8;
  Descriptor graph = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR),
             heuristics = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
      std::span<const cudnnBackendDescriptor_t>(inOrder));
  finish(graph);
  set(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR,
      cudnnBackendDescriptor_t(graph.get()));
  set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  finish(heuristics);
  std::vector<Descriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> pointers;
  for (int64_t i = 0; i < mostConfigurations; ++i) {
    configurations.push_back(make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    pointers.push_back(configurations.back().get());
  }
  int64_t count = 0;
  if (status != CUDNN_STATUS_SUCCESS ||
      library.getAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                           CUDNN_TYPE_BACKEND_DESCRIPTOR, mostConfigurations, &count,
                           pointers.data()) != CUDNN_STATUS_SUCCESS)
    return false;
  // Best first.
  for (int64_t i = 0; i < std::min(count, mostConfigurations); ++i) {
    Descriptor candidate = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    status = CUDNN_STATUS_SUCCESS;
    set(candidate, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
    set(candidate, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        pointers[size_t(i)]);
    finish(candidate);
    int64_t bytes = 0;
    if (status == CUDNN_STATUS_SUCCESS)
      status = library.getAttribute(candidate.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                    CUDNN_TYPE_INT64, 1, nullptr, &bytes);
    if (status == CUDNN_STATUS_SUCCESS) {
      chosen = std::move(candidate);
      workspace = size_t(bytes);
      return true;
    }
  }
  return false;
}

cudnnStatus_t CudnnGraph::run(cudnnHandle_t handle,
                              std::span<const std::pair<int64_t, const void *>> data,
                              void *workspaceData) const {
  std::vector<int64_t> ids;
  std::vector<void *> pointers;
  for (auto [id, pointer] : data) {
    ids.push_back(id);
    pointers.push_back(const_cast<void *>(pointer));
  }
  Descriptor pack = make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  if (!pack)
    return CUDNN_STATUS_ALLOC_FAILED;
  const auto count = int64_t(ids.size());
  cudnnStatus_t result = CUDNN_STATUS_SUCCESS;
  auto ok = [&](cudnnStatus_t next) { return (result = next) == CUDNN_STATUS_SUCCESS; };
  (void)(ok(library.setAttribute(pack.get(), CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
                                 count, ids.data())) &&
         ok(library.setAttribute(pack.get(), CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                 CUDNN_TYPE_VOID_PTR, count, pointers.data())) &&
         ok(library.setAttribute(pack.get(), CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
                                 1, &workspaceData)) &&
         ok(library.finalize(pack.get())) && ok(library.execute(handle, chosen.get(), pack.get())));
  return result;
}

} // namespace moira::rt::cuda
