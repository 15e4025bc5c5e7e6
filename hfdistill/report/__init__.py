"""Teacher, control and students compared: figures, how sure they are, and the pages that show them."""

from hfdistill.report.results import (
    ArmResult as ArmResult,
)
from hfdistill.report.results import (
    Interval as Interval,
)
from hfdistill.report.results import (
    ResultRow as ResultRow,
)
from hfdistill.report.results import (
    Summary as Summary,
)
from hfdistill.report.results import (
    agreement as agreement,
)
from hfdistill.report.results import (
    markdown_table as markdown_table,
)
from hfdistill.report.results import (
    mean_kl as mean_kl,
)
from hfdistill.report.results import (
    paired_bootstrap as paired_bootstrap,
)
from hfdistill.report.results import (
    parameter_count as parameter_count,
)
from hfdistill.report.results import (
    recovered_gap as recovered_gap,
)
from hfdistill.report.results import (
    results_table as results_table,
)
from hfdistill.report.results import (
    retention as retention,
)
from hfdistill.report.results import (
    samples_per_second as samples_per_second,
)
from hfdistill.report.results import (
    size_on_disk as size_on_disk,
)
