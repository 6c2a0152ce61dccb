"""What all commands of ``ndem`` share: their table, parser, common options, and how they end.

=============  ==============================================================================
``table``      every command: its words, its one-line help, the module that is loaded for it
``parser``     the argument parser, with the arguments of the one command that was asked for
``options``    options that several commands have
``ending``     errors as one sentence on stderr, and exit statuses
=============  ==============================================================================

Nothing here imports torch or fairchem, and neither does the module of a command when it is
imported: they do so when the command runs.
"""
