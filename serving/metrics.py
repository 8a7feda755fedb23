"""Metrics of the server, which `/metrics` shows in Prometheus' text format."""

from collections import Counter


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)  # seconds
PREFIX = "fusion_vlm_"


class Metrics:
    """Counts since the start of the server; not thread-safe, so that only the server's event loop may use them."""

    def __init__(self):
        self.in_flight = Counter()  # by path
        self.requests = Counter()  # by path and status
        self.buckets, self.seconds = Counter(), Counter()
        self.num_prompt_tokens = self.num_generated_tokens = 0

    def count(self, path: str, status: int, seconds: float, num_prompt_tokens: int, num_generated_tokens: int):
        """Count a request that has ended."""
        self.requests[path, status] += 1
        self.seconds[path] += seconds
        self.buckets.update((path, bound) for bound in BUCKETS if seconds <= bound)
        self.num_prompt_tokens += num_prompt_tokens
        self.num_generated_tokens += num_generated_tokens

    def write(self, num_running: int, num_waiting: int) -> str:
        """Return the text of `/metrics`."""
        requests = {f'{{path="{path}",status="{status}"}}': num for (path, status), num in self.requests.items()}
        lines = [
            *write_metric("requests_total", "counter", "Ended requests (499: the client left).", requests),
            *write_metric("requests_running", "gauge", "Requests that the model answers.", {"": num_running}),
            *write_metric("requests_waiting", "gauge", "Requests that wait for the model.", {"": num_waiting}),
            *write_metric("prompt_tokens_total", "counter", "Processed prompt tokens.", {"": self.num_prompt_tokens}),
            *write_metric("generated_tokens_total", "counter", "Generated tokens.", {"": self.num_generated_tokens}),
            *self.write_durations(),
        ]
        return "\n".join(lines) + "\n"

    def write_durations(self) -> list[str]:
        name, samples = "request_duration_seconds", {}
        for path, seconds in self.seconds.items():
            total = sum(num for (other, _), num in self.requests.items() if other == path)
            for bound in BUCKETS:
                samples[f'_bucket{{path="{path}",le="{bound}"}}'] = self.buckets[path, bound]
            samples[f'_bucket{{path="{path}",le="+Inf"}}'] = total
            samples[f'_sum{{path="{path}"}}'] = seconds
            samples[f'_count{{path="{path}"}}'] = total
        return write_metric(name, "histogram", "Duration of ended requests, with the time they waited.", samples)


def write_metric(name: str, kind: str, description: str, samples: dict[str, float]) -> list[str]:
    """Return the lines of one metric; `samples` maps suffixes or labels of its name to values."""
    name = PREFIX + name
    head = [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
    return head + [f"{name}{labels} {value}" for labels, value in samples.items()]
