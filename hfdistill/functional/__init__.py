"""The mathematics of distillation: pure functions of tensors, each formula once.

Shape letters, for the whole package: B batch, N tokens, D width, H heads, K classes, V vocabulary; here also M, layers
or negatives, and `...`, any leading shape. In formulas s is the student's tensor, t the teacher's. For every function:

* Gradients never reach teacher tensors: they are detached here. The exception are teacher vectors that went through a
  trainable part of an objective (embedding layers, attention); their functions say so.
* `mask`: 1 or True = valid; of the inputs' leading shape `...`, such as (B, N), unless said otherwise. Masked entries
  never count and get a zero gradient, whatever they hold, NaN and inf too. Means are over valid items, denominators
  are clamped to >= 1: a batch that is all masked gives 0 with a zero gradient.
* `temperature`: T > 0, without unit; a float, or a tensor of one value or of shape (..., 1), one T per row, whose
  values are not checked, because the device would have to wait.
* Returns: a scalar tensor (); divergences in nats, squares in squared units of the inputs, cosines without unit.
  Half precision is computed and returned in float32, under autocast too; float64 stays float64.
* Raises: ValueError for shapes that do not fit, a float temperature that is not positive, an unknown reduction.
* Not here: weights, schedules, layer maps, projections, labels, sums over processes.
"""

from hfdistill.functional.activation import activation_attention as activation_attention
from hfdistill.functional.activation import activation_map as activation_map
from hfdistill.functional.activation import channel_kl as channel_kl
from hfdistill.functional.activation import neuron_selectivity as neuron_selectivity
from hfdistill.functional.activation import projected_mse as projected_mse
from hfdistill.functional.activation import token_gram as token_gram
from hfdistill.functional.activation import token_similarity as token_similarity
from hfdistill.functional.attention import attention_probability_kl as attention_probability_kl
from hfdistill.functional.attention import attention_probability_mse as attention_probability_mse
from hfdistill.functional.attention import attention_score_mse as attention_score_mse
from hfdistill.functional.attention import attention_score_mse_tinybert as attention_score_mse_tinybert
from hfdistill.functional.attention import relation_kl as relation_kl
from hfdistill.functional.categories import category_compactness as category_compactness
from hfdistill.functional.categories import category_inter as category_inter
from hfdistill.functional.categories import category_intra as category_intra
from hfdistill.functional.channel_matching import channel_cost as channel_cost
from hfdistill.functional.channel_matching import channel_groups as channel_groups
from hfdistill.functional.channel_matching import margin_regression as margin_regression
from hfdistill.functional.channel_matching import negative_margin as negative_margin
from hfdistill.functional.channel_matching import reduced_channels as reduced_channels
from hfdistill.functional.classes import class_correlation as class_correlation
from hfdistill.functional.classes import decoupled_kl as decoupled_kl
from hfdistill.functional.classes import decoupled_parts as decoupled_parts
from hfdistill.functional.classes import hard_label_cross_entropy as hard_label_cross_entropy
from hfdistill.functional.classes import standardized_kl as standardized_kl
from hfdistill.functional.context import cosine_row_kl as cosine_row_kl
from hfdistill.functional.context import relation_angle as relation_angle
from hfdistill.functional.context import relative_distance_mse as relative_distance_mse
from hfdistill.functional.context import triple_count as triple_count
from hfdistill.functional.contrastive import cos_nce as cos_nce
from hfdistill.functional.contrastive import cos_nce_in_batch as cos_nce_in_batch
from hfdistill.functional.contrastive import in_batch_contrast as in_batch_contrast
from hfdistill.functional.contrastive import log_constant as log_constant
from hfdistill.functional.contrastive import memory_similarity as memory_similarity
from hfdistill.functional.contrastive import noise_contrast as noise_contrast
from hfdistill.functional.contrastive import relation_similarity as relation_similarity
from hfdistill.functional.contrastive import remembered as remembered
from hfdistill.functional.divergences import generalized_jsd as generalized_jsd
from hfdistill.functional.divergences import skewed_forward_cross_entropy as skewed_forward_cross_entropy
from hfdistill.functional.divergences import skewed_forward_kl as skewed_forward_kl
from hfdistill.functional.divergences import skewed_reverse_kl as skewed_reverse_kl
from hfdistill.functional.divergences import top_k_kl as top_k_kl
from hfdistill.functional.divergences import universal_logit as universal_logit
from hfdistill.functional.feature import flow_of_solution as flow_of_solution
from hfdistill.functional.feature import hidden_cosine as hidden_cosine
from hfdistill.functional.feature import hidden_mse as hidden_mse
from hfdistill.functional.feature import patience as patience
from hfdistill.functional.few_sample import pointwise_map as pointwise_map
from hfdistill.functional.kernels import kernel_alignment as kernel_alignment
from hfdistill.functional.kernels import linear_cka as linear_cka
from hfdistill.functional.kernels import linear_cka_debiased as linear_cka_debiased
from hfdistill.functional.learned_transfer import weighted_feature_match as weighted_feature_match
from hfdistill.functional.local import local_correlation as local_correlation
from hfdistill.functional.local import map_patches as map_patches
from hfdistill.functional.local import text_segments as text_segments
from hfdistill.functional.matching import attended_matching as attended_matching
from hfdistill.functional.matching import attentive_matching as attentive_matching
from hfdistill.functional.matching import energy as energy
from hfdistill.functional.matching import layer_attention as layer_attention
from hfdistill.functional.matching import task_oriented as task_oriented
from hfdistill.functional.mobilebert import attention_cross_entropy as attention_cross_entropy
from hfdistill.functional.mobilebert import attention_probability_cross_entropy as attention_probability_cross_entropy
from hfdistill.functional.mobilebert import check_progressive as check_progressive
from hfdistill.functional.mobilebert import feature_map_transfer as feature_map_transfer
from hfdistill.functional.mobilebert import feature_statistics as feature_statistics
from hfdistill.functional.mobilebert import layer_in_turn as layer_in_turn
from hfdistill.functional.relation import angle_relation as angle_relation
from hfdistill.functional.relation import correlation_congruence as correlation_congruence
from hfdistill.functional.relation import distance_relation as distance_relation
from hfdistill.functional.relation import instance_edges as instance_edges
from hfdistill.functional.relation import layer_transformation as layer_transformation
from hfdistill.functional.relation import probabilistic_transfer as probabilistic_transfer
from hfdistill.functional.relation import similarity_preserving as similarity_preserving
from hfdistill.functional.response import logit_mse as logit_mse
from hfdistill.functional.response import reverse_kl as reverse_kl
from hfdistill.functional.response import soft_target_cross_entropy as soft_target_cross_entropy
from hfdistill.functional.response import soft_target_kl as soft_target_kl
from hfdistill.functional.response import total_variation as total_variation
from hfdistill.functional.review import gated_fusion as gated_fusion
from hfdistill.functional.review import hierarchical_context as hierarchical_context
from hfdistill.functional.supervision import conditional_teacher as conditional_teacher
from hfdistill.functional.supervision import cwsm_temperature as cwsm_temperature
from hfdistill.functional.supervision import deception as deception
from hfdistill.functional.supervision import discrimination as discrimination
from hfdistill.functional.supervision import flsw_temperature as flsw_temperature
from hfdistill.functional.supervision import label_smoothing as label_smoothing
from hfdistill.functional.supervision import mixed_cross_entropy as mixed_cross_entropy
from hfdistill.functional.supervision import prime_aware as prime_aware
from hfdistill.functional.supervision import probability_shift as probability_shift
from hfdistill.functional.supervision import triplet as triplet
from hfdistill.functional.supervision import unix_mask as unix_mask
from hfdistill.functional.supervision import unix_mix as unix_mix
from hfdistill.functional.supervision import unix_scores as unix_scores
from hfdistill.functional.variational import initial_scale as initial_scale
from hfdistill.functional.variational import variational_information as variational_information
from hfdistill.functional.vocabulary import OutputHead as OutputHead
from hfdistill.functional.vocabulary import vocabulary_cross_entropy as vocabulary_cross_entropy
from hfdistill.functional.vocabulary import vocabulary_divergence as vocabulary_divergence
