# Made from the parser of the command line; `make docs` renews it.

_bloomd_ctl() {
    local -A options=(
        ['bloomd-ctl']='-h --help --version -s --socket -o --output'
        ['bloomd-ctl status']='-h --help -s --socket -o --output -w --watch'
        ['bloomd-ctl ping']='-h --help -s --socket -o --output'
        ['bloomd-ctl version']='-h --help -s --socket -o --output'
        ['bloomd-ctl config']='-h --help -s --socket -o --output'
        ['bloomd-ctl reload']='-h --help -s --socket -o --output'
        ['bloomd-ctl restart']='-h --help -s --socket -o --output'
        ['bloomd-ctl start']='-h --help -s --socket -o --output'
        ['bloomd-ctl stop']='-h --help -s --socket -o --output'
        ['bloomd-ctl probe']='-h --help -s --socket -o --output'
        ['bloomd-ctl sync']='-h --help -s --socket -o --output'
        ['bloomd-ctl log-level']='-h --help -s --socket -o --output'
        ['bloomd-ctl log']='-h --help -s --socket -o --output -n --lines -f --follow'
        ['bloomd-ctl bugreport']='-h --help -s --socket -o -c --config'
        ['bloomd-ctl pause']='-h --help -s --socket -o --output --until --reason --wait'
        ['bloomd-ctl resume']='-h --help -s --socket -o --output'
        ['bloomd-ctl cordon']='-h --help -s --socket -o --output'
        ['bloomd-ctl uncordon']='-h --help -s --socket -o --output'
        ['bloomd-ctl drain']='-h --help -s --socket -o --output --wait'
        ['bloomd-ctl why']='-h --help -s --socket -o --output'
        ['bloomd-ctl events']='-h --help -s --socket -o --output --types --after'
        ['bloomd-ctl task']='-h --help'
        ['bloomd-ctl task add']='-h --help -s --socket -o --output -f --file --context --agent --label --hint --priority --pin --format --timeout --wait'
        ['bloomd-ctl task list']='-h --help -s --socket -o --output --status --context --agent --worker --limit --cursor'
        ['bloomd-ctl task show']='-h --help -s --socket -o --output'
        ['bloomd-ctl task result']='-h --help -s --socket -o --output'
        ['bloomd-ctl task wait']='-h --help -s --socket -o --output'
        ['bloomd-ctl task dispatch']='-h --help -s --socket -o --output --worker'
        ['bloomd-ctl task cancel']='-h --help -s --socket -o --output --status --context --agent --worker --dry-run'
        ['bloomd-ctl task requeue']='-h --help -s --socket -o --output --status --context --agent --worker --dry-run'
        ['bloomd-ctl worker']='-h --help'
        ['bloomd-ctl worker show']='-h --help -s --socket -o --output'
        ['bloomd-ctl worker add']='-h --help -s --socket -o --output --url --label --max-concurrency'
        ['bloomd-ctl worker remove']='-h --help -s --socket -o --output --force'
        ['bloomd-ctl worker token']='-h --help -s --socket -o --output --list --revoke'
        ['bloomd-ctl worker enrol']='-h --help -s --socket -o --output'
        ['bloomd-ctl worker health']='-h --help -s --socket -o --output'
        ['bloomd-ctl worker update']='-h --help -s --socket -o --output --repo-url'
        ['bloomd-ctl worker restart']='-h --help -s --socket -o --output'
        ['bloomd-ctl worker uninstall']='-h --help -s --socket -o --output'
        ['bloomd-ctl workers']='-h --help -s --socket -o --output --status --limit --cursor'
        ['bloomd-ctl key']='-h --help'
        ['bloomd-ctl key add']='-h --help -s --socket -o --output'
        ['bloomd-ctl key list']='-h --help -s --socket -o --output'
        ['bloomd-ctl key remove']='-h --help -s --socket -o --output'
    )
    local -A words=(
        ['bloomd-ctl']='status ping version config reload restart start stop probe sync log-level log bugreport pause resume cordon uncordon drain why events task worker workers key'
        ['bloomd-ctl log-level']='debug info warning error'
        ['bloomd-ctl task']='add list show result wait dispatch cancel requeue'
        ['bloomd-ctl worker']='show add remove token enrol health update restart uninstall'
        ['bloomd-ctl key']='add list remove'
    )
    local current=${COMP_WORDS[COMP_CWORD]} path=bloomd-ctl value='' word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word == = ]]; then # --option=value is three words
            continue
        elif [[ $value ]]; then
            value=''
            continue
        fi
        case "$path $word" in
            'bloomd-ctl bugreport -o') value='@default' ;;
            'bloomd-ctl task add -f') value='@default' ;;
            'bloomd-ctl workers --status') value='online offline syncing error unknown' ;;
            *' -s' | *' --socket') value='@default' ;;
            *' -o' | *' --output') value='text json' ;;
            *' -n' | *' --lines') value='@' ;;
            *' -c' | *' --config') value='@default' ;;
            *' --until') value='@' ;;
            *' --reason') value='@' ;;
            *' --types') value='@' ;;
            *' --after') value='@' ;;
            *' --file') value='@default' ;;
            *' --context') value='@' ;;
            *' --agent') value='@' ;;
            *' --label') value='@' ;;
            *' --hint') value='@' ;;
            *' --priority') value='@' ;;
            *' --pin') value='@' ;;
            *' --format') value='text json' ;;
            *' --timeout') value='@' ;;
            *' --status') value='queued leased running completed failed dead cancelled' ;;
            *' --worker') value='@' ;;
            *' --limit') value='@' ;;
            *' --cursor') value='@' ;;
            *' --url') value='@' ;;
            *' --max-concurrency') value='@' ;;
            *' --revoke') value='@' ;;
            *' --repo-url') value='@' ;;
            *) [[ ${options["$path $word"]-} ]] && path+=" $word" ;;
        esac
    done
    if [[ $current == = ]]; then
        current=''
    elif [[ ! $value && $current == -* ]]; then
        value=${options[$path]}
    fi
    COMPREPLY=()
    case ${value:=${words[$path]-@}} in
        @) ;;
        @*) compopt -o "${value#@}" ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$value" -- "$current") ;;
    esac
}
complete -F _bloomd_ctl bloomd-ctl
