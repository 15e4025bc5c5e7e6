"""The mathematics of distillation: pure functions of tensors, each formula once.

Shape letters, for the whole package: B batch, N tokens, D width, H heads, K classes, V vocabulary; here also M, layers
or negatives, and `...`, any leading shape. In formulas s is the student's tensor, t the teacher's. For every function:

* Gradients never reach teacher tensors: they are detached here.
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

from hfdistill.functional.attention import attention_probability_kl as attention_probability_kl
from hfdistill.functional.attention import attention_probability_mse as attention_probability_mse
from hfdistill.functional.attention import attention_score_mse as attention_score_mse
from hfdistill.functional.attention import attention_score_mse_tinybert as attention_score_mse_tinybert
from hfdistill.functional.attention import relation_kl as relation_kl
from hfdistill.functional.contrastive import cos_nce as cos_nce
from hfdistill.functional.feature import flow_of_solution as flow_of_solution
from hfdistill.functional.feature import hidden_cosine as hidden_cosine
from hfdistill.functional.feature import hidden_mse as hidden_mse
from hfdistill.functional.feature import patience as patience
from hfdistill.functional.relation import similarity_preserving as similarity_preserving
from hfdistill.functional.response import logit_mse as logit_mse
from hfdistill.functional.response import reverse_kl as reverse_kl
from hfdistill.functional.response import soft_target_cross_entropy as soft_target_cross_entropy
from hfdistill.functional.response import soft_target_kl as soft_target_kl
from hfdistill.functional.response import total_variation as total_variation
from hfdistill.functional.supervision import triplet as triplet
