// What becomes a SlimHorovodDecayedGradient: see graph_optimizer.cc.

#ifndef TRAINER_CPU_KERNELS_DECAY_REWRITE_H_
#define TRAINER_CPU_KERNELS_DECAY_REWRITE_H_

#include <algorithm>
#include <string>
#include <vector>

#include "rewritten_graph.h"

namespace optimizer {

constexpr char kDecayedGradient[] = "SlimHorovodDecayedGradient";

inline void MergeDecay(RewrittenGraph* graph, NodeDef* addition) {
  int terms;
  if (!TryGetNodeAttr(*addition, "N", &terms) || terms != 2 ||
      addition->attr().at("T").type() != tensorflow::DT_FLOAT)
    return;
  for (int i = 0; i < 2; ++i) {
    const NodeDef* const decay = graph->FindInput(*addition, i, "Mul");
    if (decay == nullptr || graph->CountNeeds(*decay, 0) > 1 ||
        graph->CountNeeds(*decay, kOrder) > 0)
      continue;
    const auto& factors = graph->FindInputs(*decay);
    const auto is_number = [](const auto& tensor) {
      return !tensor.shape().unknown_rank() && tensor.shape().dim_size() == 0;
    };
    const int factor = std::find_if(factors.begin(), factors.end(), is_number) - factors.begin();
    if (factor == static_cast<int>(factors.size())) continue;
    std::string gradient = addition->input(1 - i);
    DataType type = tensorflow::DT_FLOAT;
    std::vector<const NodeDef*> merged{addition, decay};
    const NodeDef* const cast = graph->FindInput(*addition, 1 - i, "Cast");
    if (cast != nullptr && cast->attr().at("SrcT").type() == tensorflow::DT_BFLOAT16) {
      gradient = cast->input(0);
      type = tensorflow::DT_BFLOAT16;
      merged.push_back(cast);
    }
    std::vector<std::string> inputs{gradient, decay->input(1 - factor), decay->input(factor)};
    for (const NodeDef* node : merged)
      for (const std::string& input : node->input())
        if (ParseTensorName(input).index() < 0) inputs.push_back(input);  // It only orders.
    *addition->mutable_input() = {inputs.begin(), inputs.end()};
    Become(kDecayedGradient, {"T"}, addition);
    (*addition->mutable_attr())["T"].set_type(type);
    return;
  }
}

}  // namespace optimizer

#endif  // TRAINER_CPU_KERNELS_DECAY_REWRITE_H_
