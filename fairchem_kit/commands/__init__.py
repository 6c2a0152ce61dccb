"""What all commands share: parser, common options, and how they end.

=============  ==============================================================================
``parser``     the argument parser, with the arguments of the requested command only
``options``    options that several commands have
``ending``     errors as one sentence on stderr, and exit statuses
``program``    the command that starts ``ndem`` again, for ranks and batch scripts
``uncaught``   the same for errors in the stock ``fairchem`` command
=============  ==============================================================================

Nothing here imports torch or fairchem. A command's module imports them only when the command runs.
"""
