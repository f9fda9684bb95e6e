-- Lmod's modulefile of ollampi: `module use .../modulefiles`, `module load ollampi`.
-- It expects what install.sh installed in $OLLAMPI_ROOT/VERSION, by default /opt/apps/ollampi/VERSION. Another version:
-- a copy of this file with its name.
local root = pathJoin(os.getenv("OLLAMPI_ROOT") or "/opt/apps/ollampi", myModuleVersion())
local commands = pathJoin(root, "commands")

help([[
One MPI job serves a language model: tensor-parallel ranks behind Ollama's API.

    ollampi launch -n 4 model=/path/of/model    start a server
    ollampi run NAME "a prompt"                 ask it; NAME is that of the folder
    ollampi --help                              all commands
]])
whatis("Name: ollampi")
whatis("Version: " .. myModuleVersion())
whatis("Category: machine learning, server")
whatis("Description: MPI tensor-parallel server of language models with Ollama's API")

if mode() == "load" and not isDir(commands) then
    LmodError(commands .. " is not there: install " .. myModuleFullName() .. " with install.sh to " .. root
        .. ", or set OLLAMPI_ROOT to the folder above it")
end
-- The command alone: the Python and the mpirun beside it shall not hide those of other modules.
prepend_path("PATH", commands)
