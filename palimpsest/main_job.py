"""`palimpsest run`: everything up, the samples through and back, and a verdict."""

from __future__ import annotations

import shutil

from rich.console import Console
from rich.markup import escape

from gateway.bootstrap import checked_policy
from gateway.errors import PalimpsestError
from gateway.settings import Settings
from palimpsest.addresses import base_url
from palimpsest.report import Summary, print_summary
from palimpsest.supervisor import StartFailed, Supervisor, check_ports, only_one, with_demo_destination

SAMPLE_MARK = "samples-sent"
ONCE_LIMIT_SECONDS = 900.0


def run_everything(
    settings: Settings, console: Console, *, once: bool, samples: bool, limit_seconds: float = ONCE_LIMIT_SECONDS
) -> int:
    """Start all, send the samples (on the first start, and whenever `once`), stay up unless `once`. Exit status.

    once: 0 only if every sample is archived, forwarded, released from the spool, given back and equal.
    """
    settings = with_demo_destination(settings)
    try:
        checked_policy(settings)
        for folder in settings.folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with only_one(settings):
            check_ports(settings)
            return _supervised(settings, console, once=once, samples=samples, limit_seconds=limit_seconds)
    except (StartFailed, PalimpsestError) as error:
        console.print(f"[red]could not start:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1


def _supervised(settings: Settings, console: Console, *, once: bool, samples: bool, limit_seconds: float) -> int:
    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    supervisor = Supervisor(settings, say)
    job = _Job(supervisor, console, limit_seconds)
    code = supervisor.run((lambda: job.once(samples)) if once else (lambda: job.stay(samples)))
    say("stopped")
    return code


class _Job:
    """What happens once everything runs; in a thread beside the supervising one."""

    def __init__(self, supervisor: Supervisor, console: Console, limit_seconds: float) -> None:
        self._supervisor = supervisor
        self._settings = supervisor.settings
        self._console = console
        self._limit = limit_seconds

    def stay(self, samples: bool) -> int:
        """Welcome, the samples on the first start, then wait for the signal."""
        self._welcome()
        mark = self._settings.run_dir / SAMPLE_MARK
        if samples and not mark.exists():
            summary = self._samples()
            if not self._supervisor.stopping.is_set():
                self._verdict(summary)
                mark.touch()
        if not self._supervisor.stopping.is_set():
            self._console.print("\n[bold]running[/bold]; Ctrl-C stops everything", highlight=False)
        self._supervisor.stopping.wait()
        return 0

    def once(self, samples: bool) -> int:
        """The samples against the clock; 0 if all is well."""
        from palimpsest.send import until

        if not samples:
            return 0
        late: list[str] = []
        timer = until(self._limit, self._supervisor.stopping, lambda: late.append("time limit"))
        summary = self._samples()
        timer.cancel()
        if late:
            self._console.print(f"[red]not finished within {self._limit:g} s[/red]", highlight=False)
        elif self._supervisor.stopping.is_set():
            self._console.print("[red]interrupted[/red]", highlight=False)
        return self._verdict(summary)

    def _samples(self) -> Summary:
        from gateway.bootstrap import build
        from palimpsest.samples import write_samples
        from palimpsest.send import send_samples

        files = write_samples(self._settings.home / "samples")
        gateway = build(self._settings)
        try:
            return send_samples(gateway, files, self._console, self._supervisor.stopping)
        finally:
            gateway.close()

    def _verdict(self, summary: Summary) -> int:
        print_summary(self._console, summary)
        good = summary.restored == summary.named and summary.forwarded == summary.named and summary.clean
        if good:
            self._console.print(
                f"[bold green]all {summary.named} samples archived, forwarded, given back and equal[/bold green]",
                highlight=False,
            )
            return 0
        for line in summary.problems:
            self._console.print(f"[red]{escape(line)}[/red]", highlight=False, soft_wrap=True)
        for child in self._supervisor.children:
            if child.restarts:
                self._console.print(f"{child.spec.name} was started {child.restarts} times again: {child.log_path}")
        return 1

    def _welcome(self) -> None:
        from gateway.bootstrap import build
        from gateway.tokens import LOCAL_ONLY, mint_token

        settings = self._settings
        token = ""
        if settings.profile == "demo":
            gateway = build(settings)
            try:
                token = mint_token(gateway, "admin", "demo")
            finally:
                gateway.close()
        lines = [
            f"DICOM     {settings.ae_title} at {settings.dicom_host}:{settings.dicom_port} (in and out)",
            f"DICOMweb  {base_url(settings)}/dicomweb   (tokens: palimpsest token --role clinician)",
            f"Admin     {base_url(settings)}/admin",
            f"  token   {token}" if token else f"  sign-in {settings.oidc_issuer or LOCAL_ONLY}",
            f"State     {settings.home}   (logs in {settings.log_dir})",
        ]
        width = shutil.get_terminal_size().columns
        self._console.print("-" * min(width, 78))
        for line in lines:
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
