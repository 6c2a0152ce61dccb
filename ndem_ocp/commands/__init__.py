"""What all commands of ``ndem`` share: their table, parser, common options, and how they end.

=============  ==============================================================================
``table``      every command: its name, its one-line help, and its module
``parser``     the argument parser, with the arguments of the requested command only
``options``    options that several commands have
``ending``     errors as one sentence on stderr, and exit statuses
=============  ==============================================================================

Nothing here imports torch or fairchem. A command's module imports them only when the command runs.
"""
