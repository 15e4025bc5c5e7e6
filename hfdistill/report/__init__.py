"""Teacher, control and students compared: figures, how sure they are, and the pages that show them."""

from hfdistill.likeness import agreement as agreement
from hfdistill.likeness import mean_kl as mean_kl
from hfdistill.measurement import Latency as Latency
from hfdistill.measurement import Throughput as Throughput
from hfdistill.measurement import latencies as latencies
from hfdistill.measurement import parameter_count as parameter_count
from hfdistill.measurement import samples_per_second as samples_per_second
from hfdistill.measurement import size_on_disk as size_on_disk
from hfdistill.report.results import ArmResult as ArmResult
from hfdistill.report.results import ResultRow as ResultRow
from hfdistill.report.results import markdown_table as markdown_table
from hfdistill.report.results import results_table as results_table
from hfdistill.report.statistics import Interval as Interval
from hfdistill.report.statistics import Summary as Summary
from hfdistill.report.statistics import bootstrap as bootstrap
from hfdistill.report.statistics import paired_bootstrap as paired_bootstrap
from hfdistill.report.statistics import recovered_gap as recovered_gap
from hfdistill.report.statistics import retention as retention
