"""placeholder"""


class ExampleTable: ...


class Throughput: ...
