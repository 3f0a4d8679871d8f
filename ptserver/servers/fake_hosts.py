"""An /etc/hosts of the server's own."""

from ptserver.server import Call, Outcome, RuntimeServer


class FakeHosts(RuntimeServer):
    """Programs that read /etc/hosts find `hosts` there; everything else is as it is."""

    name = "fake_hosts"
    hosts = b"127.0.0.1 localhost\n192.0.2.7 db.example db\n"

    def openat(self, call: Call) -> Outcome:
        """Open a file in memory instead of /etc/hosts."""
        if call.path == "/etc/hosts":
            return call.open_bytes(self.hosts)
        return call.proceed()

    open = openat  # what older C libraries call
